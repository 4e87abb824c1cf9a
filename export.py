"""Hand the network over: a file that runs without this project.

    python export.py runs/cifar100/resnet50/seed0/l1-0.6/finetuned
    python export.py CKPT --raw-input --format openvino --save slim.xml
    python export.py CKPT --format torch

Writes ONNX, torch.export or OpenVINO, for batches of any size, with classes, normalisation and
lineage in the file's metadata. The file is then loaded again and run on real test images: it is
kept only if it gives the logits of the checkpoint. onnx and openvino want requirements-deploy.txt.
"""

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import checkpoint as checkpoints
from utils import cli, stages
from utils.checkpoint import Checkpoint
from utils.data import Data, normalise
from utils.exports import FORMATS, require
from utils.files import sha256
from utils.log import say
from utils.runs import plain

TOLERANCE = 1e-3  # on logits, or of the largest logit if that is above 1; float32
IMAGES = 256


class ExportError(Exception):
    """A file that does not compute what its checkpoint computes."""


class RawInput(nn.Module):
    """A network that takes images as they are: uint8 (n, height, width, 3), RGB."""

    def __init__(self, network: nn.Module, data: Data) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, data.mean, data.std

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalise(images, self.mean, self.std))


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("checkpoint", type=Path, metavar="CKPT", help="file or run folder")
    p.add_argument("--format", choices=FORMATS, default="onnx", help="of the file")
    p.add_argument(
        "--raw-input",
        action="store_true",
        help="take uint8 images (n, height, width, 3) and normalise them in the file",
    )
    p.add_argument("--save", type=Path, metavar="FILE", help="(default: model.* beside CKPT)")
    p.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="images to check")
    p.add_argument("--force", action="store_true", help="replace FILE, whatever it is")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def main(args: argparse.Namespace) -> dict:
    require(*FORMATS[args.format].needs)
    source = checkpoints.find(args.checkpoint)
    checkpoint = checkpoints.load(source)
    stages.require_finished(checkpoint, source)
    target = destination(args, source)
    described = checkpoint["data"]
    args.dataset, args.image_size = described["dataset"], described["image_size"]
    data = stages.load_data(args, checkpoint)
    network = checkpoints.model_of(checkpoint, source).eval()
    notes = metadata(args, checkpoint, data, sha256(source))
    refuse_other(args, target, notes)

    images = data.test.images[:IMAGES]
    normalised = normalise(images, data.mean, data.std).contiguous()
    with torch.inference_mode():
        wanted = network(normalised)
    if args.raw_input:
        network, inputs = RawInput(network, data), images
    else:
        inputs = normalised
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export", dir=target.parent) as folder:
        file = Path(folder, target.name)
        FORMATS[args.format].write(network, inputs[:2], file, notes)
        difference = verify(args.format, file, inputs, wanted, notes)
        written = sorted(Path(folder).iterdir(), key=lambda path: path.name == target.name)
        for path in written:  # the file itself last, its weights first
            with path.open("rb") as content:
                os.fsync(content.fileno())
            os.replace(path, target.parent / path.name)
    size = sum((target.parent / path.name).stat().st_size for path in written)
    say(f"{target}: {size / 1e6:.2f} MB, logits within {difference:.1e} on {len(images)} images")
    return {
        "stage": "export",
        "checkpoint": str(source),
        "file": str(target),
        "format": args.format,
        "raw_input": args.raw_input,
        "bytes": size,
        "images": len(images),
        "max_logit_difference": difference,
    }


def destination(args: argparse.Namespace, source: Path) -> Path:
    """Where the file goes; ValueError if its name does not say its format."""
    suffix = FORMATS[args.format].suffix
    target = args.save or source.with_suffix(suffix)
    if target.suffix != suffix or target.is_dir():
        raise ValueError(f"--save {target}: the name of a {args.format} file ends in {suffix}")
    if target.resolve() == source.resolve():
        raise ValueError(f"--save {target} is the checkpoint itself; choose another name")
    return target


def metadata(
    args: argparse.Namespace, checkpoint: Checkpoint, data: Data, checkpoint_hash: str
) -> dict[str, Any]:
    """What a user of the file must know, and where it comes from."""
    size = data.image_size
    raw = f"uint8 (n, {size}, {size}, 3), RGB"
    normalised = f"float32 (n, 3, {size}, {size}), RGB / 255, minus mean, divided by std"
    notes = {
        "input": raw if args.raw_input else normalised,
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
        "checkpoint": checkpoint_hash,
        "metrics": checkpoint["metrics"],
        "history": checkpoint["history"],
    }
    return json.loads(json.dumps(plain(notes)))  # as it will come back


def refuse_other(args: argparse.Namespace, target: Path, notes: dict[str, Any]) -> None:
    """Raise ValueError rather than overwrite a file that is not an export of this checkpoint."""
    beside = target.with_suffix(".bin") if args.format == "openvino" else target
    if args.force or not (target.exists() or beside.exists()):
        return
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # whatever a foreign file makes its reader raise
        found = FORMATS[args.format].metadata(target)
    if any(found.get(key) != notes[key] for key in ("checkpoint", "input")):
        raise ValueError(f"{beside} is something else; another --save, or --force to replace it")


def verify(
    format_: str, file: Path, inputs: Tensor, wanted: Tensor, notes: dict[str, Any]
) -> float:
    """Largest difference of the file's logits, in a batch and alone; ExportError if too large."""
    run = FORMATS[format_].runner(file)
    pairs = ((run(inputs), wanted), (run(inputs[:1]), wanted[:1]))
    differences = [(found - expected).abs().max() for found, expected in pairs]
    difference = torch.stack(differences).max().item()  # NaN if any is, unlike Python's max
    if not difference <= TOLERANCE * max(1.0, wanted.abs().max().item()):
        raise ExportError(f"{format_}: the logits differ by {difference:.1e}; no file was written")
    if FORMATS[format_].metadata(file) != notes:
        raise ExportError(f"{format_}: the metadata did not survive; no file was written")
    return difference


if __name__ == "__main__":
    cli.run_script(build_parser, main)
