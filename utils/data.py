"""Images as uint8 tensors in memory, and the four places they come from."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from . import image_folders
from .checkpoint import require_intact, save_plain
from .files import locked
from .image_folders import DataError
from .log import say

CLASS_COUNTS = {"cifar10": 10, "cifar100": 100}
CROP_PADDING = 4


class Split(NamedTuple):
    """Images (n, h, w, 3) uint8 and their labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Split:
        """The same images and labels on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def draw(self, count: int, seed: int) -> Split:
        """`count` of the images at random, or all of them in another order."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.labels), generator=generator)[:count]
        return Split(self.images[chosen], self.labels[chosen])


class Data(NamedTuple):
    """A dataset, and the statistics that normalize it (of the training images, in [0, 1])."""

    name: str
    classes: list[str]
    mean: list[float]
    std: list[float]
    train: Split
    test: Split
    resize: str = "squash"  # how images of other shapes became square
    directory: str | None = None  # where the files are

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.train.images.shape[1]

    def description(self) -> dict[str, Any]:
        """What a checkpoint keeps of its data."""
        told = {"dataset": self.name, "classes": self.classes, "image_size": self.image_size}
        told |= {"mean": self.mean, "std": self.std}
        return {**told, "resize": self.resize, "directory": self.directory}


def load(
    name: str,
    directory: Path,
    image_size: int = 32,
    resize: str = "squash",
    class_order: str | None = None,
    download: bool = True,
) -> Data:
    """Read a dataset: from its official archive, from class folders, or generated.

    Images that have to be decoded are decoded once, into a cache beside them that is rebuilt
    when the files change. Raises DataError if anything is missing or wrong.
    """
    folders = name == "folder" or (name != "synthetic" and (directory / "train").is_dir())
    if not folders and (resize != "squash" or class_order == "numbers"):
        raise ValueError("--resize and --class-order are for class folders of images")
    if name == "synthetic":
        return synthetic(image_size)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--data {directory} is not a folder")
    if name != "folder" and image_size != 32:
        raise ValueError(f"--image-size {image_size}: {name} has images of 32 pixels")
    if folders:
        data = _read_folders(name, directory, image_size, resize, class_order)
    else:
        md5 = _official(name).tgz_md5
        data = _cached(name, directory, md5, lambda: _read_archive(name, directory, download))
    return data._replace(resize=resize, directory=str(directory.resolve()))


# ------------------------------------------------------------------ class folders


def _read_folders(
    name: str, directory: Path, image_size: int, resize: str, class_order: str | None
) -> Data:
    listing = image_folders.find(directory, class_order)
    count, expected = len(listing.classes), CLASS_COUNTS.get(name)
    if expected not in (None, count):
        raise DataError(f"{directory}: {count} classes, but {name} has {expected}")
    parts = listing.train, listing.test
    digest = hashlib.sha256(f"format 2, {image_size} pixels, {resize}".encode())
    above = len(os.fsencode(directory / "train")) - len("train")  # however one names it
    for path, label in itertools.chain(*parts):
        status = os.stat(path)
        facts = f" {label} {status.st_size} {status.st_mtime_ns}\n"
        digest.update(os.fsencode(path)[above:] + facts.encode())

    def decode() -> Data:
        images = [
            image_folders.decode(samples, image_size, resize, which)
            for samples, which in zip(parts, ("train", "test"), strict=True)
        ]
        labels = [torch.tensor([label for _, label in samples]) for samples in parts]
        splits = map(Split, map(torch.from_numpy, images), labels)
        return _with_statistics(name, listing.classes, *splits)

    return _cached(name, directory, digest.hexdigest(), decode)


def _with_statistics(name: str, classes: list[str], train: Split, test: Split) -> Data:
    """Mean and standard deviation per color channel, from exact counts of the 256 values."""
    channels, levels = train.images.reshape(-1, 3).T, np.arange(256) / 255
    counts = np.array([channel.bincount(minlength=256).tolist() for channel in channels])
    shares = counts / channels.shape[1]
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
    std = [round(spread, 4) or 1.0 for spread in np.sqrt(variance).tolist()]
    return Data(name, list(classes), mean.round(4).tolist(), std, train, test)


# ---------------------------------------------------------------- official archive


def _official(name: str) -> type:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _read_archive(name: str, directory: Path, download: bool) -> Data:
    """CIFAR as published, unpacked and, before that, downloaded if it is not there whole.

    torchvision checks the hash of what it downloads, and of every file before it reads it.
    """
    from torchvision.datasets import utils

    archive = _official(name)
    packed, md5 = directory / archive.filename, archive.tgz_md5

    def read() -> list[Any]:
        return [archive(directory, train=train) for train in (True, False)]

    try:
        try:
            parts = read()
        except RuntimeError:  # not there, or not whole; torchvision's own download skips the latter
            if not (download or packed.exists()):
                problem = f"no {name} in it; --data DIR says where the images are"
                raise DataError(f"{directory}: {problem}") from None
            if not (download or utils.check_integrity(packed, md5)):
                raise
            where = {"download_root": directory, "filename": packed.name}
            utils.download_and_extract_archive(archive.url, **where, md5=md5)
            parts = read()
    except (RuntimeError, OSError, EOFError) as error:
        problem = str(error).rstrip(".")
        if packed.exists() and not utils.check_integrity(packed, md5):
            problem = f"{packed} is damaged ({problem})"
        place = f"put {packed.name} or class folders train/ and test/ into {directory}"
        raise DataError(f"{name} cannot be had: {problem}; {place}") from None
    splits = [Split(torch.from_numpy(p.data.copy()), torch.tensor(p.targets)) for p in parts]
    return _with_statistics(name, parts[0].classes, *splits)


# ------------------------------------------------------------------------- cache


def _cached(name: str, directory: Path, fingerprint: str, read: Callable[[], Data]) -> Data:
    path = directory / f".{name}-cache.pt"
    if data := _from_cache(path, fingerprint):
        return data
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with locked(directory):  # of processes that start together one reads, the others wait
            if data := _from_cache(path, fingerprint):
                return data
            data = read()
            _keep(data, path, fingerprint)
            return data
    finally:
        with contextlib.suppress(OSError):  # nothing came of it: leave no empty folders
            for folder in missing:
                folder.rmdir()


def _keep(data: Data, path: Path, fingerprint: str) -> None:
    fields = {**data._asdict(), "train": tuple(data.train), "test": tuple(data.test)}
    content = {"fingerprint": fingerprint, "data": fields}
    try:
        save_plain(path, content)
        say(f"decoded images kept in {path}")
    except OSError as error:
        say(f"{path}: {error.strerror}; the images are decoded anew each time")


def _from_cache(path: Path, fingerprint: str) -> Data | None:
    # Missing, damaged, from an older version: whatever is wrong with it, read afresh.
    if not path.is_file():  # opening a pipe would wait for ever
        return None
    with contextlib.suppress(Exception):
        stored = torch.load(path, weights_only=True, mmap=True)
        if stored["fingerprint"] == fingerprint:
            require_intact(path)
            fields = stored["data"]
            splits = {part: Split(*fields.pop(part)) for part in ("train", "test")}
            data = Data(**fields, **splits)
            return data if _is_sound(data) else None
    return None


def _is_sound(data: Data) -> bool:
    """Whether shapes fit, labels are those of classes, and the statistics can scale pixels."""
    size, count, splits = data.image_size, len(data.classes), (data.train, data.test)
    shapes = [images.shape == (len(labels), size, size, 3) for images, labels in splits]
    labels = torch.cat([split.labels for split in splits])
    known = labels.min() >= 0 and labels.max() < count
    scaled = all(mean >= 0 for mean in data.mean) and all(std > 0 for std in data.std)
    return all(shapes) and known and scaled


# --------------------------------------------------------------------- synthetic


def synthetic(image_size: int = 32, classes: int = 20, seed: int = 0) -> Data:
    """Generated images that need no files: 4,096 to train on, 1,024 to test.

    Each class is a smooth random pattern, symmetric so that flips keep it. An image shows its
    pattern at a random place, with random contrast and sign (so that averages tell nothing), over
    a weaker pattern of another class and noise. A small network learns this in a minute, and
    loses accuracy visibly when it is pruned.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(classes, 3, 8, 8, generator=generator)
    large = F.interpolate(coarse + coarse.flip(3), size=2 * image_size, mode="bicubic")
    patterns = large / large.std(dim=(1, 2, 3), keepdim=True)

    def draw(count: int) -> Split:
        def random(low: float, high: float) -> Tensor:
            return torch.empty(count, 1, 1, 1).uniform_(low, high, generator=generator)

        def windows(of: Tensor) -> Tensor:
            corners = torch.randint(image_size // 4, (2, count), generator=generator)
            corners += 3 * image_size // 8
            view = patterns.unfold(2, image_size, 1).unfold(3, image_size, 1)
            return view[of, :, corners[0], corners[1]]

        labels = torch.randint(classes, (count,), generator=generator)
        others = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, 3, image_size, image_size, generator=generator)
        sign = 2 * torch.randint(2, (count, 1, 1, 1), generator=generator) - 1
        shown = sign * random(0.5, 1.2) * windows(labels)
        images = shown + random(-0.6, 0.6) * windows(others) + 1.4 * noise
        images = (128 + 48 * images).clamp(0, 255).to(torch.uint8)
        return Split(images.permute(0, 2, 3, 1).contiguous(), labels)

    names = [f"pattern {index:02d}" for index in range(classes)]
    return _with_statistics("synthetic", names, draw(4096), draw(1024))


# ----------------------------------------------------------------------- batches


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 images (n, h, w, 3) as float32 input (n, 3, h, w), channels last in memory."""
    scale = 1 / (255 * torch.tensor(std, device=images.device))
    shift = torch.tensor(mean, device=images.device) * 255
    return ((images.float() - shift) * scale).permute(0, 3, 1, 2)


def sample(
    data: Data, count: int, seed: int, batch_size: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` training images drawn at random, normalized, not augmented."""
    batches = (part.split(batch_size) for part in data.train.draw(count, seed))
    for images, labels in zip(*batches, strict=True):
        yield normalize(images, data.mean, data.std), labels


def epoch_batches(
    data: Data,
    split: Split,
    batch_size: int,
    epoch_seed: int,
    augment: str = "crop-flip",
    part: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, augmented, normalized batches; a partial last batch is left out.

    `split` holds the training images, on the device, and padded with `pad_for_crops`. All random
    choices are drawn at once from `epoch_seed`, so the batches depend neither on earlier epochs
    nor on how many processes share them; `part` is the share of each batch that this process takes.
    """
    images, labels = split
    generator = torch.Generator().manual_seed(epoch_seed)
    count, size = len(labels), data.image_size
    order = torch.randperm(count, generator=generator)
    corners = torch.randint(2 * CROP_PADDING + 1, (2, count), generator=generator)
    if augment == "none":
        corners.fill_(CROP_PADDING)  # the image itself
    flips = torch.rand(count, generator=generator) < 0.5
    order, corners, flips = (x.to(images.device) for x in (order, corners, flips))
    windows = images.unfold(1, size, 1).unfold(2, size, 1)  # (n, rows, columns, 3, h, w), a view
    for start in range(0, count - batch_size + 1, batch_size):
        chosen = slice(start, start + batch_size)
        index = order[chosen][part]
        top, left = (c[chosen][part] for c in corners)
        batch = windows[index, top, left].permute(0, 2, 3, 1)
        if augment == "crop-flip":
            flip = flips[chosen][part].view(-1, 1, 1, 1)
            batch = torch.where(flip, batch.flip(2), batch)
        yield normalize(batch.contiguous(), data.mean, data.std), labels[index]


def augmented(data: Data, count: int, seed: int, augment: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` training images drawn at random, augmented as in a training."""
    some = data.train.draw(count, seed)
    some = some._replace(images=pad_for_crops(some.images))
    return epoch_batches(data, some, min(128, len(some.labels)), seed, augment)


def pad_for_crops(images: Tensor) -> Tensor:
    """The images with the black border that random crops reach into."""
    return F.pad(images, (0, 0, *(CROP_PADDING,) * 4))
