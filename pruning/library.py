"""One call that prunes a network: what stage 2 does, for use from other programs."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models import build, channel_groups, cost_of, costs, import_weights, spec_of
from models.resnet import ResNet

from .config import METHODS, PruningConfig, method_class, resolve
from .criteria import Batches
from .filters import Filters
from .masks import Masks, apply_masks
from .method import Pruned, Record, Task
from .refit import refit
from .selection import with_fast_widths
from .soft import Soft
from .surgery import verify
from .weight import Weight

METHODS.update(l1=Filters, soft=Soft, weight=Weight)


def prune_step(
    model: nn.Module, config: PruningConfig, task: Task, earlier: Record | None = None
) -> tuple[Pruned, Record]:
    """Prune a network that `earlier` pruning may have left; it is not changed.

    Raises ValueError for a config that does not fit the network, or leaves it as it is.
    """
    method = method_class(config)(config)
    pruned = method.prune(model, task)
    before, after = (costs(m, task.image_size) for m in (model, pruned.network))
    asked = any(pruned.ratio) if isinstance(pruned.ratio, list) else pruned.ratio
    if before == after and asked:
        told = "it is gone already, or --min-keep, --round-to or --skip keep it all"
        raise ValueError(f"nothing is removed: {told}")
    dense = earlier.dense if earlier else spec_of(model)
    steps = [*(earlier.steps if earlier else []), config]
    share_cut = 1 - after["effective_macs"] / before["effective_macs"]
    return pruned, Record(steps, pruned.ratio, dense, share_cut, method.state)


def prune(
    network: nn.Module | Mapping[str, Any],
    image_size: int | None = None,
    batches: Batches | None = None,
    earlier: Record | None = None,
    **flags: Any,
) -> tuple[nn.Module, Record]:
    """A smaller copy of a ResNet, and how it was pruned.

    `network` is one of `models.build`, a module of torchvision or another library, or a state
    dict. `image_size` is 32 by default, where the stem has 3x3 pixels. `flags` are those of
    res50prune.py by their names: `prune(network, target_macs=0.5)`. `batches` gives normalized
    images and labels to a criterion that wants them, each time it is called. `earlier` is the
    record of a network that was pruned before: its masks are applied again, a target is a share of
    its dense network, and a ratio one of what is left. Raises ValueError for what cannot be read,
    for flags that do not fit, remove nothing or need a training, RuntimeError if the copy computed
    something else than the masked original, on random input.
    """
    if image_size is not None and not (isinstance(image_size, int) and image_size > 0):
        raise ValueError(f"image_size {image_size!r} is no number of pixels")
    model, masks = (network, {}) if isinstance(network, ResNet) else _read(network, image_size)
    if image_size is None and model.conv1.kernel_size != (3, 3):
        raise ValueError("image_size is needed: this network is not for images of 32 pixels")
    image_size = 32 if image_size is None else image_size
    dense = spec_of(model)
    if earlier is not None:
        _require_record_of(model, earlier)
        dense, known = earlier.dense, earlier.state.masks
        masks = known | {n: own & known.get(n, own).to(own.device) for n, own in masks.items()}
        model = copy.deepcopy(model)
        apply_masks(model, dict(masks))
    task = Task(cost_of(dense, image_size), image_size, batches, masks)
    pruned, record = prune_step(model, with_fast_widths(resolve(flags), dense), task, earlier)
    if record.state.pending:
        raise ValueError("this pruning happens while training: see finetune.py")
    verify(pruned.reference, pruned.network, _noise(image_size, next(model.parameters())))
    if record.steps[-1].refit:
        refit(copy.deepcopy(model), pruned.network, record.state.kept_channels(), batches)
    return pruned.model.train(isinstance(network, nn.Module) and network.training), record


def _noise(size: int, like: Tensor) -> Tensor:
    """Four inputs, the same each time, of the type and on the device of `like`."""
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)).to(like)


def _require_record_of(model: ResNet, record: Record) -> None:
    """Raise ValueError if the record tells of another network, or of one that is not cut yet."""
    if not isinstance(record, Record):
        raise ValueError(f"earlier is a {type(record).__name__}, not the record of a pruning")
    if record.state.pending:
        raise ValueError("earlier: that pruning is still to be done by a training")
    spec, layers = spec_of(model), dict(model.named_modules())
    before, after = record.dense["widths"], spec["widths"]
    varying = {"widths", "pads", "width"}  # the last one is read off the widths of a state dict
    same = all(spec[key] == record.dense[key] for key in spec.keys() - varying)
    same &= before.keys() == after.keys() and all(after[name] <= before[name] for name in after)
    sizes = {group.name: group.size for group in channel_groups(spec)}
    kept = {name: len(channels) for name, channels in record.state.kept.items()}
    same &= kept.items() <= sizes.items()
    for name, mask in record.state.masks.items():
        same &= name in layers and layers[name].weight.shape == mask.shape
    if not same:
        raise ValueError("earlier is the record of another network")


def _read(
    network: nn.Module | Mapping[str, Any], image_size: int | None
) -> tuple[nn.Module, Masks]:
    """A network of another library as one of ours; what was assumed of a state dict is a warning.

    A module is compared: it must compute the same.
    """
    if not isinstance(network, nn.Module):
        found = import_weights(network)
        for note in found.notes:
            warnings.warn(note, stacklevel=3)
        return build(found.spec, found.state_dict), found.masks
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    found = import_weights(network.state_dict(), eps=norms[0].eps if norms else None)
    place = next(network.parameters())
    model = build(found.spec, found.state_dict).to(place.device)
    x = _noise(image_size or 32, place)
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            expected, logits = network.eval()(x), model.eval()(x.float())
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(expected, Tensor):
        raise ValueError(f"the network gives a {type(expected).__name__}, not logits")
    expected = expected.float()
    if not expected.isfinite().all():
        raise ValueError("the network gives NaN or infinite logits")
    close = 0.05 if place.dtype == torch.bfloat16 else 1e-3
    if not torch.allclose(expected, logits, rtol=close, atol=close * expected.abs().max().item()):
        told = f"it was read as another network ({found.notes[-1]})"
        raise ValueError(f"{told}; models.import_weights takes a stem, a shortcut and a stride")
    return model, found.masks
