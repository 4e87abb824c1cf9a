"""Checkpoints: one dict of plain types and tensors in a file, which alone rebuilds its network."""

import argparse
import contextlib
import io
import json
import pickle
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import Spec, build, complete, cost_of, is_usual
from models.resnet import PadShortcut
from pruning import PruningConfig, Record
from pruning.surgery import cut_spec

from . import files, format1
from .config import NetworkConfig, Recipe, fill
from .files import plain

FORMAT = 2
STAGES = ("baseline", "imported", "pruned", "finetuned", "scratch", "like")
KINDS = {"format": int, "stage": str, "spec": dict, "state_dict": dict, "data": dict}
KINDS |= {"pruning": (dict, type(None)), "metrics": dict, "history": list}
DATA = {"dataset", "classes", "mean", "std", "image_size"}


class Ignored:
    """What numpy wrote beside the weights: nothing of it is made again.

    numpy's own classes are not safe to unpickle; they trust the flags in the file.
    """

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


ARRAYS = ("numpy.dtype", "numpy.ndarray")
ARRAYS += tuple(
    f"numpy.{core}.multiarray.{name}"
    for core in ("core", "_core")  # its name in numpy 1 and 2
    for name in ("scalar", "_reconstruct")
)
HARMLESS = [argparse.Namespace, *((Ignored, name) for name in ARRAYS)]


class CheckpointError(Exception):
    """A file that is missing, damaged, unsafe or not a checkpoint."""


@dataclass
class Checkpoint:
    """A network and all that is known about it."""

    stage: str
    spec: Spec
    state_dict: dict[str, torch.Tensor]
    data: dict[str, Any]  # dataset, classes, mean, std, image_size
    pruning: Record | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per stage
    file: Path = Path("checkpoint")

    @cached_property
    def sha256(self) -> str:
        """Hash of the file: what later stages call their parent."""
        return files.sha256(self.file)

    @property
    def steps(self) -> list[PruningConfig]:
        """The pruning steps so far."""
        return self.pruning.steps if self.pruning else []

    @property
    def control(self) -> str | None:
        """What it is there to be compared with: None for a network that is no control."""
        if self.stage == "like":
            return "scratch"
        if self.stage == "finetuned" and not self.steps:
            return "longer"
        return "random" if any(step.criterion == "random" for step in self.steps) else None

    @property
    def dense(self) -> Spec:
        """The network before any pruning."""
        return self.pruning.dense if self.pruning else self.spec

    @property
    def pending(self) -> bool:
        """Whether its pruning is still to be done, by a training."""
        return bool(self.pruning and self.pruning.state.pending)

    @property
    def image_size(self) -> int:
        """Height and width of its images, in pixels."""
        return self.data["image_size"]

    @property
    def seed(self) -> int:
        """Of the last stage; 0 for a network trained elsewhere."""
        return self.history[-1]["seed"] if self.history else 0

    def trained_with(self) -> dict[str, Any] | None:
        """The recipe and network of the training from scratch that it descends from, if told."""
        stages = ("baseline", "scratch", "like")
        told = [entry["arguments"] for entry in self.history if entry["stage"] in stages]
        return told[0] if told else None

    def network_config(self) -> NetworkConfig:
        """The network and its data."""
        names = ("arch", "depth", "width", "shortcut", "stem", "stride")
        known = {name: self.spec[name] for name in names}
        known |= {} if is_usual(self.spec) else {"blocks": tuple(self.spec["blocks"])}
        known["resize"] = self.data.get("resize", NetworkConfig.resize)
        if self.class_orders() == ("numbers",):
            known["class_order"] = "numbers"
        return NetworkConfig(self.data["dataset"], self.image_size, **known)

    def class_orders(self) -> tuple[str, ...]:
        """The orders of class folders that its classes are in."""
        classes = self.data["classes"] or []
        numbers = all(map(str.isdecimal, classes)) and classes == sorted(classes, key=int)
        return ("strings",) * (classes == sorted(classes)) + ("numbers",) * numbers

    @property
    def directory(self) -> Path | None:
        """Where its images were, if it is told."""
        told = self.history[-1]["arguments"]["network"].get("folder") if self.history else None
        place = self.data.get("directory") or told
        return Path(place) if place else None

    def network(self) -> nn.Module:
        """The network on the CPU; its weights are those of `state_dict`, not copies.

        Raises CheckpointError if they do not fit.
        """
        try:
            model = build(self.spec, {k: tensor.detach() for k, tensor in self.state_dict.items()})
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{self.file}: does not rebuild its network: {error}") from None
        for key, tensor in self.state_dict.items():
            if tensor.dtype not in (torch.float32, torch.int64):  # counters are whole numbers
                raise CheckpointError(f"{self.file}: {key} is {tensor.dtype}, not torch.float32")
            if not tensor.isfinite().all():
                raise CheckpointError(f"{self.file}: {key} holds NaN or infinite values")
        return model

    def save(self, path: Path, half: bool = False) -> None:
        """Write it atomically; refuses what would not load with `weights_only=True`.

        `half` stores the weights in float16, for a smaller file; read, they are float32. Raises
        ValueError if they are too large for that.
        """
        content = {key: value for key, value in vars(self).items() if key in KINDS}
        if half:
            content["state_dict"] = {
                key: tensor.half() if tensor.is_floating_point() else tensor
                for key, tensor in self.state_dict.items()
            }
            if not all(tensor.isfinite().all() for tensor in content["state_dict"].values()):
                raise ValueError("the weights are too large for float16")
        content["pruning"] = self.pruning.as_dict() if self.pruning else None
        save_plain(path, {**content, "format": FORMAT, "control": self.control})


def find(path: str | Path) -> Path:
    """The checkpoint file that `path`, a file or a run folder, stands for."""
    path = Path(path)
    file = path / "model.pt" if path.is_dir() else path
    if not file.is_file():
        remedy = "check the path, or run the stage that writes it first"
        raise CheckpointError(f"{file}: no such checkpoint; {remedy}")
    return file


def load_file(path: str | Path, advice: str = "make it again") -> Any:
    """`torch.load` on the CPU, which never executes anything that the file carries.

    Also a safetensors file. Beside the weights may lie a Namespace of flags, and what numpy wrote,
    which is ignored.
    """
    file = find(path)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file as load_tensors

            return load_tensors(file)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # guesses about what is no checkpoint
            return torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{file}: reading it needs `pip install {error.name}`") from None
    except PermissionError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    except Exception as error:  # a damaged file makes torch stumble anywhere
        problem = _what_else(file) or f"damaged or not a checkpoint; {advice}"
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            problem = "holds more than tensors and plain types; save its state_dict() instead"
        raise CheckpointError(f"{file}: {problem}") from None


def require_intact(file: Path, advice: str = "make it again") -> None:
    """Raise CheckpointError if a file that we wrote has changed since; torch checks no CRC."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, ValueError) as error:
        damaged = error
    if damaged:
        raise CheckpointError(f"{file}: damaged ({damaged}); {advice}")


def _what_else(file: Path) -> str | None:
    """What a file is that often stands where a checkpoint was meant, and what to do."""
    with file.open("rb") as opened:
        start = opened.read(256).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` where it is from"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file itself; download it again"
    names: list[str] = []
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        names = zipfile.ZipFile(file).namelist()
    if any("/code/" in name for name in names):
        return "a TorchScript archive; save the state_dict() of the module that it was made from"
    if any(name.endswith("archive_format") for name in names):
        return "an exported program; save the state_dict() of the module that it was made from"
    return None


def is_checkpoint(content: Any) -> bool:
    """True for what `save` writes, in whatever format version."""
    return isinstance(content, dict) and "format" in content and "spec" in content


def parse(content: Any, file: Path) -> Checkpoint:
    """The checkpoint that a file holds; raises CheckpointError if it is none that can be read."""
    if not is_checkpoint(content):
        raise CheckpointError(f"{file}: not a checkpoint of this project")
    for key, kind in KINDS.items():
        if key in content and not isinstance(content[key], kind):
            raise CheckpointError(f"{file}: damaged ({key} is a {type(content[key]).__name__})")
    if not 1 <= content["format"] <= FORMAT:
        newer = f"format {content['format']}, written by a newer version (this one reads {FORMAT})"
        raise CheckpointError(f"{file}: {newer}")
    require_intact(file)
    missing = KINDS.keys() - content.keys() or DATA - content["data"].keys()
    if missing:
        raise CheckpointError(f"{file}: lacks {', '.join(sorted(missing))}")
    try:
        content = format1.checkpoint(content) if content["format"] == 1 else content
        content = {k: v for k, v in content.items() if k not in ("format", "control")}
        content["spec"] = complete(content["spec"])
        if record := content["pruning"]:
            if record["method"] != record["steps"][-1]["method"]:
                raise ValueError("its method is not that of its last step")
            content["pruning"] = Record.from_dict({**record, "dense": complete(record["dense"])})
        weights = content["state_dict"]
        if {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.half}:
            weights |= {k: t.float() for k, t in weights.items() if t.is_floating_point()}
        checkpoint = Checkpoint(**content, file=file)
        _check(checkpoint)
        return checkpoint
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise CheckpointError(f"{file}: damaged ({told})") from None


def _check(checkpoint: Checkpoint) -> None:
    """Try each field as later stages use it; raises what comes of one that they cannot use."""
    data, classes, record = checkpoint.data, checkpoint.data["classes"], checkpoint.pruning

    def require(sound: bool, name: str, value: Any) -> None:
        if not sound:
            raise ValueError(f"{name} is {value}")

    require(checkpoint.stage in STAGES, "stage", checkpoint.stage)
    for name, low in (("mean", 0.0), ("std", 1e-4)):
        values = data[name] if data[name] is not None else [0.5] * 3
        inside = [low <= value <= 1 for value in values]
        require(len(inside) == 3 and all(inside), name, values)
    named = isinstance(classes, list) and {type(name) for name in classes} == {str}
    fits = named and len(classes) == checkpoint.spec["num_classes"]
    require(fits or classes is None, "classes", classes)
    require(type(data["image_size"]) is int, "image_size", data["image_size"])
    place = data.get("directory")
    require(isinstance(place, (str, type(None))), "directory", place)
    top1 = checkpoint.metrics.get("top1")
    require(top1 is None or 0 <= top1 <= 100, "top1", top1)
    json.dumps([plain(checkpoint.metrics), plain(checkpoint.history)])  # as results and exports do
    network = checkpoint.network()
    for shortcut in (m for m in network.modules() if isinstance(m, PadShortcut)):
        sides = shortcut.before, shortcut.after
        require(all(type(side) is int and side >= 0 for side in sides), "pads", sides)
    weights = network.state_dict()
    for name, tensor in weights.items():
        require(not name.endswith("running_var") or bool((tensor >= 0).all()), name, "negative")
    checkpoint.network_config()
    for spec in (checkpoint.spec, checkpoint.dense):
        cost_of(spec, data["image_size"])
    for entry in checkpoint.history:
        fill(NetworkConfig, entry["arguments"]["network"])
        fill(Recipe, entry["arguments"].get("recipe") or {})
        require(entry["stage"] in STAGES, "stage in history", entry["stage"])
        seed = entry["seed"]
        require(type(seed) is int and 0 <= seed < 2**31, "seed", seed)
    if record:
        shares = record.ratio if isinstance(record.ratio, list) else [record.ratio]
        require(all(0 <= share <= 1 for share in shares), "ratio", record.ratio)
        require(0 <= record.share_cut <= 1, "share_cut", record.share_cut)
        for name, width in checkpoint.spec["widths"].items():
            dense = record.dense["widths"][name]
            require(width <= dense, f"dense width of {name}", f"{dense}, less than {width}")
        for name, mask in record.state.masks.items():
            fits = mask.dtype == torch.bool and mask.shape == weights[f"{name}.weight"].shape
            require(fits, "mask", name)
        pads, before = checkpoint.spec["pads"], record.dense["pads"]
        require(pads.keys() == before.keys(), "pads", pads)
    if checkpoint.pending:
        cut_spec(checkpoint.spec, record.state.kept_channels())


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint that a stage of this project wrote."""
    return parse(load_file(path), find(path))


def save_plain(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` atomically. Raises UnpicklingError for what `weights_only=True` refuses."""

    buffer = io.BytesIO()  # into a file, torch.save would not say that the disk is full
    torch.save(content, buffer)
    buffer.seek(0)
    torch.load(buffer, map_location="cpu", weights_only=True)
    files.write_atomically(path, lambda file: file.write(buffer.getbuffer()))
