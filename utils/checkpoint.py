"""Checkpoints: one dict of plain types and tensors, which alone rebuilds its network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import build

from .files import write_atomically

FORMAT = 1
KEYS = {"format", "stage", "spec", "state_dict", "data", "pruning", "metrics", "history"}
DATA = {"dataset", "classes", "mean", "std", "image_size"}
Checkpoint = dict[str, Any]


class CheckpointError(Exception):
    """A file that is missing, damaged, unsafe or not a checkpoint."""


def find(path: str | Path) -> Path:
    """The checkpoint file that `path`, a file or a run folder, stands for."""
    path = Path(path)
    file = path / "model.pt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint; run the stage that writes it first")
    return file


def load_file(path: str | Path, advice: str = "make it again") -> Any:
    """`torch.load` on the CPU, which never executes anything that the file carries."""
    file = find(path)
    damaged = CheckpointError(f"{file}: damaged or not a checkpoint; {advice}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            problem = "holds more than tensors and plain types; save its state_dict() instead"
            raise CheckpointError(f"{file}: {problem}") from None
        raise damaged from None
    except PermissionError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError):
        raise damaged from None


def is_checkpoint(content: Any) -> bool:
    """True for what `save` writes, in whatever format version."""
    return isinstance(content, dict) and "format" in content and "spec" in content


def validate(content: Any, file: Path) -> Checkpoint:
    """`content` if it is a checkpoint that this version reads; raises CheckpointError if not."""
    if not is_checkpoint(content):
        raise CheckpointError(f"{file}: not a checkpoint of this project")
    kinds = {"format": int, "spec": dict, "state_dict": dict, "data": dict, "history": list}
    kinds |= {"metrics": dict, "pruning": (dict, type(None))}
    for key, kind in kinds.items():
        if key in content and not isinstance(content[key], kind):
            raise CheckpointError(f"{file}: damaged ({key} is a {type(content[key]).__name__})")
    if content["format"] > FORMAT:
        newer = f"format {content['format']}, written by a newer version (this one reads {FORMAT})"
        raise CheckpointError(f"{file}: {newer}")
    missing = KEYS - content.keys() or DATA - content["data"].keys()
    if missing:
        raise CheckpointError(f"{file}: lacks {', '.join(sorted(missing))}")
    return content


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint that a stage of this project wrote."""
    return validate(load_file(path), find(path))


def model_of(checkpoint: Checkpoint, file: Path | str = "checkpoint") -> nn.Module:
    """The network of a checkpoint, with its weights; `file` is what an error names."""
    state = checkpoint["state_dict"]
    try:
        model = build(checkpoint["spec"], state)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: does not rebuild its network: {error}") from None
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {key} holds NaN or infinite values")
    return model


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; refuses what would not load with `weights_only=True`."""
    require_plain(checkpoint, "checkpoint")
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def require_plain(value: Any, where: str) -> None:
    """Raise TypeError unless `value` is made of plain types and tensors only."""
    # type(), not isinstance: numpy.float64 is a float, and would not load.
    if isinstance(value, dict):
        for key, item in value.items():
            require_plain(key, f"key of {where}")
            require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            require_plain(item, f"{where}[{index}]")
    elif type(value) not in (str, int, float, bool, type(None), torch.Tensor, nn.Parameter):
        raise TypeError(f"{where} is a {type(value).__name__}; only plain types can be saved")
