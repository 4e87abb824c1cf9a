"""Hand the network over: a file that runs without this project.

    python export.py runs/cifar100/resnet50/seed0/l1-0.6/finetuned
    python export.py CKPT --raw-input --format openvino --save slim.xml
    python export.py CKPT --int8 --max-drop 0.5
    python export.py CKPT --format torch

Writes ONNX, torch.export or OpenVINO, for batches of any size, with classes, normalization and
lineage in the file's metadata. The file is then loaded again and run on real test images: it is
kept only if it gives the logits of the checkpoint. onnx and openvino want requirements-deploy.txt.

--int8 quantizes weights and activations; training images tell the range of the activations. Such a
file is kept only if it loses at most --max-drop points of top-1 on the test images.
"""

import utils.early  # noqa: F401

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from os.path import realpath  # unlike Path.resolve never fails on links that loop
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from measurement.engines import folded
from measurement.runtimes import FORMATS, INT8_NEEDS, REFERENCE, Bind, require
from utils import cli
from utils.checkpoint import Checkpoint
from utils.config import RunConfig
from utils.data import Data, Split, normalize
from utils.files import make_folder, plain, write_atomically
from utils.run import data_for, network_for, read_parent, require_finished

TOLERANCE = 1e-3  # on logits, or of the largest logit if that is above 1; float32
IMAGES = 256  # whose logits are compared
CALIBRATION = 512  # training images, for the range of activations
BATCH = 500
# What a user of the file writes, in Python.
LOAD = {
    "onnx": 'onnxruntime.InferenceSession("{}").run(None, {{"images": images}})',
    "torch": 'torch.export.load("{}").module()(images)',
    "openvino": 'openvino.Core().compile_model("{}")(images)',
}


class ExportError(Exception):
    """A file that does not compute what its checkpoint computes."""


class RawInput(nn.Module):
    """A network that takes images as they are: uint8 (n, height, width, 3), RGB."""

    def __init__(self, network: nn.Module, data: Data) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, data.mean, data.std

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalize(images, self.mean, self.std))


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("checkpoint", type=Path, metavar="CKPT", help="file or run folder")
    p.add_argument("--format", choices=FORMATS, default="onnx", help="of the file")
    raw = "take uint8 images (n, height, width, 3) and normalize them in the file"
    p.add_argument("--raw-input", action="store_true", help=raw)
    p.add_argument("--int8", action="store_true", help="quantize; for onnx and openvino")
    drop = "points of top-1 that --int8 may lose (default: 1)"
    p.add_argument("--max-drop", type=float, metavar="X", help=drop)
    p.add_argument("--save", type=Path, metavar="FILE", help="(default: model.* beside CKPT)")
    cli.add_flags(p, RunConfig, "data")
    p.add_argument("--force", action="store_true", help="replace FILE, whatever it is")
    cli.add_reading_flags(p, *cli.IMAGES)
    return p


def main(args: argparse.Namespace) -> dict:
    format_ = FORMATS[args.format]
    if args.max_drop is not None and not args.int8:
        raise ValueError("--max-drop goes with --int8")
    if args.max_drop is not None and not 0 <= args.max_drop <= 100:
        raise ValueError(f"--max-drop {args.max_drop}: from 0 to 100 points")
    if args.int8 and not format_.int8:
        raise ValueError(f"--int8 is not for --format {args.format}")
    require(*format_.needs, *INT8_NEEDS * args.int8)
    checkpoint = read_parent(args.checkpoint, vars(args), "")
    require_finished(checkpoint)
    target = args.save or checkpoint.file.with_suffix(".int8" * args.int8 + format_.suffix)
    config = network_for(vars(args), checkpoint)
    data = data_for(config, args.data, checkpoint, download=False)
    network = checkpoint.network().eval()
    notes = metadata(checkpoint, data, args.raw_input, args.int8)
    check_target(target, checkpoint.file, args.format, None if args.force else notes)
    make_folder(target.parent)

    def inputs(images: Tensor) -> Tensor:
        """Images as the file takes them."""
        return images if args.raw_input else normalize(images, data.mean, data.std).contiguous()

    def expected(images: Tensor) -> Tensor:
        """Logits of the checkpoint."""
        with torch.inference_mode():
            return network(normalize(images, data.mean, data.std))

    whole = folded(network) if args.int8 else network
    whole = RawInput(whole, data) if args.raw_input else whole
    most = 1.0 if args.max_drop is None else args.max_drop
    test, ranges = data.test, data.train.draw(CALIBRATION, seed=0).images
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, target.name)
        format_.write(whole, inputs(ranges), file, notes, args.int8)
        run = format_.load(file, REFERENCE)
        if args.int8:
            checked = verify_top1(lambda images: run(inputs(images))(), expected, test, most)
        else:
            images = test.images[:IMAGES]
            difference = verify_logits(run, inputs(images), expected(images))
            checked = {"images": len(images), "max_logit_difference": difference}
        if format_.metadata(file) != notes:
            raise ExportError("the metadata did not survive; no file was written")
        written = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    # The file itself last, its weights first.
    for name, content in sorted(written.items(), key=lambda item: item[0] == target.name):
        write_atomically(target.with_name(name), lambda file, content=content: file.write(content))
    result = {"stage": "export", "checkpoint": str(checkpoint.file), "file": str(target)}
    result |= {"format": args.format, "raw_input": args.raw_input, "int8": args.int8}
    return {**result, **checked, "bytes": sum(map(len, written.values()))}


def check_target(target: Path, source: Path, format_: str, notes: dict | None) -> None:
    """Raise ValueError for a name that does not say its format, or that is the checkpoint's.

    Also rather than replace what is not an export of the same, as its `notes` tell; with None
    anything goes.
    """
    suffix = FORMATS[format_].suffix
    if target.is_dir():
        raise ValueError(f"--save {target} is a folder; name a file in it")
    if target.suffix != suffix:
        raise ValueError(f"--save {target}: with --format {format_} its name ends in {suffix}")
    if realpath(target) == realpath(source):
        raise ValueError(f"--save {target} is the checkpoint itself; choose another name")
    beside = target.with_suffix(".bin") if format_ == "openvino" else target
    if notes is None or not (target.exists() or beside.exists()):
        return
    with contextlib.suppress(Exception):  # whatever a foreign file makes its reader raise
        known = FORMATS[format_].metadata(target)
        if all(known[key] == notes[key] for key in ("checkpoint", "input", "precision")):
            return
    raise ValueError(f"{beside} is something else; another --save, or --force to replace it")


def metadata(checkpoint: Checkpoint, data: Data, raw: bool, int8: bool) -> dict[str, Any]:
    """What a user of the file must know, and where it comes from."""
    size = data.image_size
    images = f"uint8 (n, {size}, {size}, 3), RGB"
    normalized = f"float32 (n, 3, {size}, {size}), RGB / 255, minus mean, divided by std"
    notes = {"input": images if raw else normalized, "checkpoint": checkpoint.sha256}
    notes |= {"precision": "int8" if int8 else "fp32"}
    notes |= {"metrics": checkpoint.metrics, "history": checkpoint.history}
    told = {key: value for key, value in data.description().items() if key != "directory"}
    return plain({**told, **notes})


def verify_logits(bind: Bind, inputs: Tensor, expected: Tensor) -> float:
    """Largest difference of a file's logits, in a batch and alone; ExportError if too large."""
    differences = [(bind(inputs[:n])() - expected[:n]).abs().max() for n in (len(inputs), 1)]
    difference = torch.stack(differences).max().item()  # NaN if any is, unlike Python's max
    if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise ExportError(f"the logits differ by {difference:.1e}; no file was written")
    return difference


def verify_top1(
    found: Callable[[Tensor], Tensor],
    expected: Callable[[Tensor], Tensor],
    test: Split,
    most: float,
) -> dict[str, float]:
    """Top-1 of a file and of its checkpoint; ExportError if more than `most` points are lost.

    Both functions give the logits of uint8 images.
    """
    right = torch.zeros(2)
    for images, labels in zip(test.images.split(BATCH), test.labels.split(BATCH), strict=True):
        both = torch.stack([found(images), expected(images)])
        if not both.isfinite().all():
            raise ExportError("int8: logits that are not numbers; no file was written")
        right += (both.argmax(-1) == labels).sum(-1)
    top1, before = (100 * right.double() / len(test.labels)).tolist()
    if before - top1 > most:
        told = f"top-1 falls from {before:.2f} to {top1:.2f} %, more than --max-drop {most:g}"
        raise ExportError(f"int8: {told}; no file was written")
    return {"images": len(test.labels), "top1": top1, "top1_before": before}


def summary(result: dict[str, Any]) -> str:
    """The file, how well it fits its checkpoint, and how to load it."""
    images, load = f"{result['images']} test images", LOAD[result["format"]]
    if result["int8"]:
        checked = f"top-1     {result['top1_before']:.2f} % -> {result['top1']:.2f} % on {images}"
    else:
        checked = f"logits    within {result['max_logit_difference']:.1e} on {images}"
    return (
        f"file      {result['file']}, {result['bytes'] / 1e6:.2f} MB\n{checked}\n"
        f"next      {load.format(result['file'])}"
    )


if __name__ == "__main__":
    cli.run_script(build_parser, main, summary)
