"""Class folders of images, as people and their programs leave them."""

import contextlib
import os
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps  # comes with torchvision
from tqdm import tqdm

from .log import say

TEST = ("test", "val", "valid", "validation")  # the first that is there
# What file managers and archives leave behind; hidden entries are left out, too.
NOT_IMAGES = {"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini"}
# What Pillow knows but does not read by itself, and what holds no colors.
NOT_READ = ("BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF")
NAMED = 3  # files that a message names at most
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")  # modes of Pillow
WHITE = (255, 255, 255, 255)


class DataError(Exception):
    """Data that is missing, damaged or not what it was said to be."""


class Listing(NamedTuple):
    """Names of the classes, and files with the index of their class."""

    classes: list[str]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


def find(directory: Path, order: str | None = None) -> Listing:
    """The images in train/<class>/ and test/<class>/ (or val/), at any depth; says what it left.

    `order` is that of the classes, "strings" if None. Raises DataError for what is not there,
    ValueError for an order that cannot be.
    """
    test = next((name for name in TEST if _folders(directory / name)), TEST[0])
    if test != TEST[0]:
        say(f"{directory}: no class folders in test/; {test}/ takes its place")
    folders = {part: _classes(directory / part) for part in ("train", test)}
    classes = sorted(set(folders["train"].values()))
    if odd := sorted(set(classes) ^ set(folders[test].values())):
        told = ", ".join(odd[:NAMED])
        raise DataError(f"{directory}: train and {test} differ in the classes {told}")
    if all(name.isdecimal() for name in classes):
        numbers = sorted(classes, key=int)
        if order == "numbers":
            classes = numbers
        elif order is None and classes != numbers:
            say(
                f"warning: {directory}: the classes are numbers, and taken in the order of strings "
                f"({', '.join(classes[:3])}, ...) as torchvision does; --class-order numbers takes "
                f"{', '.join(numbers[:3])}, ..."
            )
    elif order == "numbers":
        raise ValueError(f"--class-order numbers: not all classes in {directory} are numbers")
    index = {name: label for label, name in enumerate(classes)}
    labels = {p: {raw: index[name] for raw, name in folders[p].items()} for p in folders}
    return Listing(classes, *(_samples(directory / p, labels[p]) for p in folders))


def _ours(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_IMAGES


def _folders(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return [entry.name for entry in os.scandir(directory) if entry.is_dir() and _ours(entry.name)]


def _classes(directory: Path) -> dict[str, str]:
    """Names of the folders in `directory` -> of the classes, where accents are one character."""
    if not (names := _folders(directory)):
        wanted = "--data DIR wants train/<class>/ and test/<class>/ with images"
        raise DataError(f"{directory}: no class folders; {wanted}")
    return {name: unicodedata.normalize("NFC", name) for name in names}


def _samples(directory: Path, labels: dict[str, int]) -> list[tuple[str, int]]:
    """Files and labels, in torchvision's order; says how many were no images."""
    from torchvision.datasets.folder import make_dataset  # a second to import

    Image.init()
    kinds = Image.OPEN.keys() - {*NOT_READ}
    known = {end for end, kind in Image.registered_extensions().items() if kind in kinds}
    left_out: Counter[str] = Counter()

    def is_image(path: str) -> bool:
        if not all(map(_ours, Path(path).relative_to(directory).parts)):
            return False
        end = Path(path).suffix.lower()
        if end not in known:
            left_out[end or "no extension"] += 1
        return end in known

    samples = make_dataset(directory, labels, is_valid_file=is_image, allow_empty=True)
    if count := left_out.total():
        ends = ", ".join(f"{end} {n}" for end, n in left_out.most_common(NAMED))
        say(f"{directory}: left out, as no images that can be read: {count} ({ends})")
    found = {label for _, label in samples}
    if empty := [name for name, label in labels.items() if label not in found]:
        raise DataError(f"{directory / empty[0]}: no images in it")
    return samples


def decode(samples: list[tuple[str, int]], size: int, resize: str, name: str) -> np.ndarray:
    """The images of a listing: uint8 (n, size, size, 3).

    Says how many were changed, and how. Raises DataError that names those that cannot be read.
    """

    def attempt(file: str) -> tuple[np.ndarray, list[str]] | str:
        try:
            return read(file, size, resize)
        except Exception as error:  # Pillow raises many kinds
            return f"{file} ({error})"

    images = np.empty((len(samples), size, size, 3), np.uint8)
    unreadable, changed = [], Counter()
    pool = ThreadPoolExecutor(os.cpu_count())
    # Closed, it cancels what is left if it is interrupted.
    with pool, contextlib.closing(pool.map(attempt, (file for file, _ in samples))) as found:
        bar = tqdm(found, f"decoding {name}", len(samples), unit="img", disable=None)
        for index, one in enumerate(bar):
            if isinstance(one, str):
                unreadable.append(one)
            else:
                images[index] = one[0]
                changed.update(one[1])
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        raise DataError(f"not readable as images: {', '.join(unreadable[:NAMED])}{more}")
    for what, count in changed.items():
        say(f"{name}: {count} of {len(samples)} images {what}")
    return images


def read(file: str, size: int, resize: str) -> tuple[np.ndarray, list[str]]:
    """An image, upright and in 8-bit RGB (size, size, 3), and what had to be changed.

    Raises ValueError for pixels whose scale is unknown, and whatever Pillow raises.
    """
    how, shape, changed = Image.Resampling.BICUBIC, (size, size), []
    with Image.open(file) as image:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            changed.append("turned upright, as their EXIF tag says")
        # PNG and PNM have no pixels of 32 bits, so what some versions of Pillow call that has 16.
        wide = image.mode == "I" and image.format in ("PNG", "PPM")
        image = ImageOps.exif_transpose(image)
        if wide or image.mode.startswith("I;16"):  # Pillow would clip them at 255
            levels = np.asarray(image).astype(np.uint32)
            image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("pixels of 32 bits, whose scale is unknown; save it with 8 or 16")
        if "transparency" in image.info or image.mode in TRANSPARENT:
            image = image.convert("RGBA")
            if image.getextrema()[3][0] < 255:  # what is transparent may hide any color
                changed.append("with transparent pixels, which are white now")
                image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
        image = image.convert("RGB")
        if image.width != image.height:
            done = "cropped to their middle" if resize == "crop" else "squashed (or --resize crop)"
            changed.append(f"not square, {done}")
        image = ImageOps.fit(image, shape, how) if resize == "crop" else image.resize(shape, how)
        return np.asarray(image), changed
