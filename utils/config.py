"""What a command line comes to: frozen configs, which are also the identity of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from models import new_spec

T = TypeVar("T")


@dataclass(frozen=True)
class RunConfig:
    """Where and how to run; nothing of it changes what comes out."""

    save: Path | None = None  # None: a folder in runs/
    data: Path = Path("data")
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    force: bool = False


@dataclass(frozen=True)
class NetworkConfig:
    """The network, and the images that it is for."""

    dataset: str = "cifar100"
    image_size: int = 32
    train_images: int | None = None  # None: all
    folder: str | None = None  # where the images of dataset "folder" are: they are its identity
    arch: str = "resnet"
    depth: int = 50
    width: int = 64
    shortcut: str = "B"
    mean: tuple[float, ...] | None = None  # None: those of the training images
    std: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """<arch><depth>; a width or shortcut that is not the default joins it."""
        usual, name = new_spec(self.depth, 1, arch=self.arch), f"{self.arch}{self.depth}"
        if self.width != usual["width"]:
            name += f"w{self.width}"
        if self.shortcut != usual["shortcut"]:
            name += f"-{self.shortcut}"
        return name


@dataclass(frozen=True)
class Recipe:
    """How to train. `lr` is the peak; `batch_size` counts the images of all processes."""

    name: str = "default"
    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.1
    lr_schedule: str = "onecycle"
    lr_start: float = 0.0  # fraction of the schedule that is left out at its beginning
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    augment: str = "crop-flip"
    teacher: str | None = None  # hash of the checkpoint whose logits are distilled
    temperature: float = 4.0  # of both logits
    teacher_weight: float = 0.9  # of the teacher's part in the loss
    recalibrate: bool = False  # BatchNorm's statistics, before training
    compile: bool = False
    seed: int = 0


def fill(kind: type[T], *sources: Mapping[str, Any]) -> T:
    """A config whose fields come from the first source that has them, or are its defaults."""
    values = {}
    for field in fields(kind):
        told = (s[field.name] for s in sources if s.get(field.name) is not None)
        found = next(told, field.default)
        values[field.name] = tuple(found) if isinstance(found, list) else found
    return kind(**values)
