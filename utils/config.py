"""What a command line comes to: frozen configs, which are also the identity of a run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from models import ARCHS, SHORTCUTS, STEMS, STRIDES, new_spec
from pruning.config import Options, option

T = TypeVar("T")
DATASETS = ("cifar100", "cifar10", "folder", "synthetic")
AUGMENTATIONS = ("crop-flip", "crop", "none")
RESIZES = ("squash", "crop")
CLASS_ORDERS = ("strings", "numbers")
# Learning rate as a fraction of its peak, after the fraction t in [0, 1) of all steps.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    # Smith & Topin 2018 (arXiv 1708.07120), with the usual cosine descent
    "onecycle": lambda t: 0.04 + 0.96 * t / 0.3 if t < 0.3 else _cosine((t - 0.3) / 0.7),
    # Loshchilov & Hutter 2017 (arXiv 1608.03983), without restarts
    "cosine": lambda t: _cosine(t),
    # He et al. 2016 (arXiv 1512.03385), section 4.2: a tenth at 1/2 and 3/4 of the way
    "multistep": lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01,
    "constant": lambda t: 1.0,
}


def _cosine(t: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * t))


DATA = "folder of the images (default: that of the input, or data)"
RESIZE = "what becomes of images that are not square; crop: their middle is kept"
CLASS_ORDER = "order of folders named by numbers (default: strings, as in torchvision)"
MEAN = "mean of the pixels, in [0, 1], to normalize them (default: the training images')"
STD = "standard deviation of the pixels, likewise"
STEM = "kernel, stride and max-pool before the first block; imagenet: 7x7s2-pool"
KEY = "which weights of a file from elsewhere, if it holds several"
RECALIBRATE = "average BatchNorm's statistics anew before training"
RGB = {"nargs": 3, "metavar": ("R", "G", "B")}
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class RunConfig(Options):
    """Where and how to run."""

    save: Path | None = option(None, "run folder (default: in runs/)", Path)
    force: bool = option(False, "fresh start, whatever the run folder holds", bool)
    data: Path | None = option(None, DATA, Path)
    device: str = option("auto", "device to compute on", metavar="auto|cpu|cuda")
    threads: int | None = option(None, "CPU threads (default: all allowed)", int, "[1, 1024]")
    precision: str = option("auto", "auto: bf16 where the processor has it", str, PRECISIONS)


@dataclass(frozen=True)
class NetworkConfig(Options):
    """The network, and the images that it is for."""

    dataset: str = option("cifar100", "images", str, DATASETS)
    image_size: int = option(32, "height and width in pixels", int, "[8, 1e4]")
    train_images: int | None = option(None, "random subset to train on", int, "[2, 1e9]")
    arch: str = option("resnet", "resnet_de: depthwise separable, with SE", str, ARCHS)
    depth: int = option(50, "number of layers", int, "[4, 1e4]")
    width: int | None = option(None, "channels of stage 1 (default: 64 or 16)", int, "[1, 1e4]")
    shortcut: str | None = option(None, "A, A-end: zeros; B: 1x1 (default: B or A)", str, SHORTCUTS)
    stem: str = option("cifar", STEM, str, tuple(STEMS))
    stride: str = option("3x3", "which convolution of a bottleneck downsamples", str, STRIDES)
    blocks: tuple[int, ...] | None = None  # per stage, where not usual for the depth
    key: str | None = option(None, KEY, metavar="NAME")
    bn_eps: float | None = option(None, "eps of the BatchNorms (default: 1e-5)", float, "(0, 1]")
    resize: str = option("squash", RESIZE, str, RESIZES)
    class_order: str | None = option(None, CLASS_ORDER, str, CLASS_ORDERS)
    folder: str | None = None  # where the images of dataset "folder" are: they are its identity
    mean: tuple[float, ...] | None = option(None, MEAN, float, "[0, 1]", **RGB)
    std: tuple[float, ...] | None = option(None, STD, float, "(0, 1]", **RGB)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks:  # of a file that was read, where all is known
            return
        shape = {"arch": self.arch, "width": self.width, "shortcut": self.shortcut}
        try:
            spec = new_spec(self.depth, 1, **shape)  # knows what is usual for this depth
        except ValueError as error:
            raise ValueError(f"--depth {self.depth}: {error}") from None
        object.__setattr__(self, "width", spec["width"])
        object.__setattr__(self, "shortcut", spec["shortcut"])

    @property
    def name(self) -> str:
        """<arch><depth>; what is not usual for that depth joins it."""
        name = f"{self.arch}{self.depth}"
        usual = {} if self.blocks else new_spec(self.depth, 1, arch=self.arch)
        if self.width != usual.get("width"):
            name += f"w{self.width}"
        parts = [".".join(map(str, self.blocks))] if self.blocks else []
        parts += [self.shortcut] if self.shortcut != usual.get("shortcut") else []
        parts += [self.stem] if self.stem != "cifar" else []
        parts += ["stride1x1"] if self.stride == "1x1" else []
        parts += [self.resize] if self.resize != "squash" else []
        return "-".join([name, *parts])


@dataclass(frozen=True)
class Recipe(Options):
    """How to train. `lr` is the peak; `batch_size` counts the images of all processes."""

    name: str = "default"
    epochs: int = option(100, "passes over the training images", int, "[1, 1e9]")
    batch_size: int = option(128, "images of a step, in all", int, "[2, 1e9]")
    lr: float = option(0.1, "peak learning rate", float, "(0, 1e9]")
    lr_schedule: str = option("onecycle", "course of the learning rate", within=tuple(LR_SCHEDULES))
    lr_start: float = option(0.0, "fraction of the schedule to skip at its start", float, "[0, 1)")
    momentum: float = option(0.9, "Nesterov momentum", float, "[0, 1]")
    weight_decay: float = option(5e-4, "L2 penalty on all parameters", float, "[0, 1e9]")
    label_smoothing: float = option(0.1, "0 for none", float, "[0, 1]")
    augment: str = option("crop-flip", "augmentation of the training images", str, AUGMENTATIONS)
    eval_every: int = option(1, "epochs between two looks at the test images", int, "[1, 1e9]")
    compile: bool = option(False, "torch.compile for the network", bool)
    teacher: str | None = None  # hash of the checkpoint whose logits are distilled
    temperature: float = option(4.0, "softening of both logits", float, "[1, 1e9]")
    teacher_weight: float = option(0.9, "teacher's share of the loss", float, "[0, 1]")
    recalibrate: bool = option(False, RECALIBRATE, bool, flags=("--reestimate-bn",))
    seed: int = option(0, "random seed", int, "[0, 2147483648]")


def fill(kind: type[T], *sources: Mapping[str, Any]) -> T:
    """A config whose fields come from the first source that has them, or are its defaults."""
    values = {}
    for field in fields(kind):
        told = (s[field.name] for s in sources if s.get(field.name) is not None)
        found = next(told, field.default)
        values[field.name] = tuple(found) if isinstance(found, list) else found
    return kind(**values)
