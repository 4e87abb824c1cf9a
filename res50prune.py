"""Stage 2: cut the least important channels out of a trained network. Trains nothing.

    python res50prune.py --depth 50 --dataset cifar100 --method l1 --ratio 0.6
    python res50prune.py --depth 56 --dataset cifar10 --ratio 0.6,0.3,0.1 --skip layer1.7 layer2.0
    python res50prune.py --depth 50 --dataset cifar100 --scope all --target-macs 0.5
    python res50prune.py --model resnet56.th --dataset cifar10 --save runs/mine

Works on any ResNet, in spite of its name. The input is the baseline of the same flags, or
--model: a checkpoint, a run folder, or a plain state dict of a torchvision-style ResNet trained
elsewhere. Prints what happened to each group of channels, the accuracy before and right after,
and the largest difference between the logits of the cut network and those of the big one with
the same channels silenced; then the result as one JSON line.
"""

import argparse
import time
from pathlib import Path

from models import Cost, cost_of
from pruning import options
from pruning.methods import METHODS
from pruning.surgery import logit_difference
from utils import checkpoint as checkpoints
from utils import cli, stages
from utils.checkpoint import Checkpoint
from utils.data import normalise
from utils.log import say, table
from utils.machine import Machine, place, prepare
from utils.runs import Run
from utils.train import evaluate

CHECK_IMAGES = 16
TOLERANCE = 1e-3  # of the largest logit, in float32; rounding alone stays far below


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    g = p.add_argument_group("input")
    g.add_argument("--model", type=Path, metavar="CKPT", help="(default: the baseline)")
    for name in ("mean", "std"):
        g.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help="normalisation of a network trained elsewhere, of pixels in [0, 1] "
            "(default: that of the training images)",
        )
    g.add_argument("--no-eval", action="store_true", help="do not measure any accuracy")
    options.add_pruning_flags(p)
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    parent = stages.read_input(args, args.model, "baseline")
    name = options.tag(args)
    options.fill_defaults(args)
    folder = args.save or stages.default_folder(args) / name / "pruned"
    with Run(folder, cli.outcome_flags(args), args.force) as run:
        return run.result or prune(args, run, machine, parent)


def prune(args: argparse.Namespace, run: Run, machine: Machine, parent: Checkpoint) -> dict:
    start = time.perf_counter()
    data = stages.load_data(args, parent)
    model = checkpoints.model_of(parent)
    before = cost_of(parent["spec"], data.image_size)
    dense = Cost(**parent["pruning"]["dense"]) if parent["pruning"] else before

    pruning_start = time.perf_counter()
    pruned = METHODS[args.method].prune(model, args, dense, data.image_size)
    x = normalise(data.train.images[:CHECK_IMAGES], data.mean, data.std)
    difference, largest = logit_difference(pruned.reference, pruned.model, x)
    pruning_seconds = time.perf_counter() - pruning_start
    say(table(("group", "before", "after", "protected by"), pruned.groups))
    after = cost_of(pruned.spec, data.image_size)
    say(f"parameters {before.params:,} -> {after.params:,}, MACs {before.macs:,} -> {after.macs:,}")
    say(f"largest logit difference {difference:.2e} (largest logit {largest:.1f})")
    if not difference <= TOLERANCE * largest:
        raise RuntimeError(
            f"the cut network computes something else: logits differ by {difference}"
        )

    measured = {"top1": None, "loss": None, "top1_before": None}
    if not args.no_eval:
        measured["top1_before"], _ = evaluate(place(model, machine), data, machine)
        measured["top1"], measured["loss"] = evaluate(place(pruned.model, machine), data, machine)
        say(f"top-1 {measured['top1_before']:.2f} % -> {measured['top1']:.2f} %")
    measured |= {
        "max_logit_difference": difference,
        "pruning_seconds": pruning_seconds,
        "seconds": time.perf_counter() - start,
    }
    record = {
        "method": args.method,
        "ratio": pruned.ratio,
        "options": options.given(args),
        "dense": dense._asdict(),
        "before": before._asdict(),
        **pruned.state,
    }
    return stages.hand_over(
        run, args, machine, "pruned", pruned.model, data, measured, parent, record
    )


if __name__ == "__main__":
    cli.run_script(build_parser, main)
