"""A network that was trained elsewhere, as the checkpoint that it never had."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import Contradiction, import_weights
from pruning import METHODS, Record, resolve

from .checkpoint import Checkpoint, CheckpointError
from .config import NetworkConfig, fill
from .log import say


def read(content: Any, file: Path, given: Mapping[str, Any]) -> Checkpoint:
    """What a state dict holds, as far as it shows, and as `given` where it does not.

    Says what was assumed. Raises CheckpointError if it is no ResNet that can be read.
    """
    told = {name: given[name] for name in ("key", "stem", "shortcut", "stride")}
    try:
        found = import_weights(content, **told, eps=given["bn_eps"])
    except Contradiction as error:
        raise ValueError(f"{file}: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    notes = found.notes
    if not given["image_size"]:
        notes = [*notes, f"assumed: images of {NetworkConfig.image_size} pixels (--image-size)"]
    for note in notes:
        say(f"{file}: {note}")
    names = ("dataset", "image_size", "resize", "bn_eps")
    known = fill(NetworkConfig, {name: given.get(name) for name in names})
    data = {"dataset": known.dataset, "image_size": known.image_size, "classes": None}
    data["resize"] = known.resize
    data |= {"mean": given.get("mean"), "std": given.get("std")}
    record = None
    if found.masks:
        weights = [tensor for tensor in found.state_dict.values() if tensor.dim() > 1]
        zeros = sum(int((~mask).sum()) for mask in found.masks.values())
        ratio = min(0.9999, round(zeros / sum(w.numel() for w in weights), 4))
        state = METHODS["weight"].State(masks=found.masks)
        record = Record(
            [resolve({"method": "weight", "ratio": ratio})], ratio, found.spec, 0, state
        )
        say(f"{file}: {len(found.masks)} layers have masks: {100 * ratio:.1f} % of all weights")
    return Checkpoint("elsewhere", found.spec, found.state_dict, data, record, file=file)
