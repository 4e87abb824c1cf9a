"""Stage 2: prune a trained network. Trains nothing.

    python res50prune.py --depth 50 --dataset cifar100 --method l1 --ratio 0.6
    python res50prune.py --depth 56 --dataset cifar10 --ratio 0.6,0.3,0.1 --skip layer1.7 layer2.0
    python res50prune.py --depth 50 --dataset cifar100 --scope all --target-macs 0.5
    python res50prune.py --model resnet56.th --dataset cifar10 --save runs/mine
    python res50prune.py --depth 50 --dataset cifar100 --sensitivity

Works on any ResNet, in spite of its name. The input is the baseline of the same flags, or
--model: a checkpoint, a run folder, or a plain state dict of a torchvision-style ResNet trained
elsewhere. Prints what happened to each group of channels, the accuracy before and right after,
and the largest difference between the logits of the cut network and those of the big one with
the same channels silenced; then the result as one JSON line.
"""

import argparse
import contextlib
import json
import math
import time
from functools import partial
from pathlib import Path

from torch import nn
from tqdm import tqdm

from measurement.timing import relative_latency
from models import build, channel_groups, cost_of
from pruning import options, sensitivity
from pruning.allocation import select
from pruning.criteria import Evidence, score
from pruning.methods import METHODS, Task
from pruning.sensitivity import RATIOS
from pruning.surgery import logit_difference
from utils import checkpoint as checkpoints
from utils import cli, stages
from utils.checkpoint import Checkpoint
from utils.data import Data, normalise, sample
from utils.files import write_text
from utils.log import say, table
from utils.machine import Machine, place, prepare
from utils.runs import Run
from utils.train import evaluate

CHECK_IMAGES = 16
TOLERANCE = 1e-3  # of the largest logit, in float32; rounding alone stays far below
EVIDENCE_IMAGES = 512
SENSITIVITY_IMAGES = 2000


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    g = p.add_argument_group("input")
    g.add_argument("--model", type=Path, metavar="CKPT", help="(default: the baseline)")
    for name, low in (("mean", 0), ("std", 1e-3)):
        g.add_argument(
            f"--{name}",
            type=cli.number(float, low, 1),
            nargs=3,
            metavar=("R", "G", "B"),
            help="normalisation of a network trained elsewhere, of pixels in [0, 1] "
            "(default: that of the training images)",
        )
    g.add_argument("--no-eval", action="store_true", help="do not measure any accuracy")
    options.add_pruning_flags(p)
    p.add_argument(
        "--sensitivity",
        action="store_true",
        help="only measure what cutting each group alone costs on training images, and draw it",
    )
    p.add_argument(
        "--batch-size",
        type=cli.number(int, 1),
        default=64,
        metavar="N",
        help="at which --target-latency is measured",
    )
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    file, parent = stages.read_input(args, args.model, "baseline")
    name = options.tag(args)
    options.fill_defaults(args)
    stages.require_finished(parent, file)
    if args.sensitivity and args.method == "weight":
        raise ValueError("--sensitivity is measured on channels, not for --method weight")
    if args.target_latency and args.round_to is None:
        groups, _ = select(channel_groups(parent["spec"]), args.skip, args.scope)
        args.round_to = options.hardware_multiple(machine.device.type, groups)
    if parent["pruning"]:
        name = f"{parent['pruning']['name']}+{name}"
    if args.sensitivity:
        data = stages.load_data(args, parent)
        found = sensitivities(args, machine, file, parent, data)
        from reporting import plots  # matplotlib takes its time, and only this needs it

        plots.sensitivity(found["drops"], Path(found["file"]).with_suffix(".png"))
        return {"stage": "sensitivity", "dataset": data.name, **found}
    folder = stages.output_folder(args, f"{name}/pruned", file)
    with Run(folder, cli.outcome_flags(args), args.force) as run:
        return run.result or prune(args, run, machine, file, parent, name)


def prune(
    args: argparse.Namespace,
    run: Run,
    machine: Machine,
    file: Path,
    parent: Checkpoint,
    name: str,
) -> dict:
    start = time.perf_counter()
    data = stages.load_data(args, parent)
    model = checkpoints.model_of(parent, file)
    before = cost_of(parent["spec"], data.image_size)
    task = task_for(args, machine, file, parent, data)

    pruning_start = time.perf_counter()
    pruned = METHODS[args.method].prune(model, task)
    x = normalise(data.train.images[:CHECK_IMAGES], data.mean, data.std)
    difference, largest = logit_difference(pruned.reference, pruned.network, x)
    pruning_seconds = time.perf_counter() - pruning_start
    after = stages.costs(pruned.network, data.image_size)
    say(table(("group", "before", "after", "protected by"), pruned.rows))
    say(f"parameters {before.params:,} -> {after['params']:,} ({after['nonzero_params']:,} not 0)")
    say(f"MACs {before.macs:,} -> {after['macs']:,} ({after['effective_macs']:,} by weights not 0)")
    say(f"largest logit difference {difference:.2e} (largest logit {largest:.1f})")
    if not difference <= TOLERANCE * largest:
        raise RuntimeError(
            f"the cut network computes something else: logits differ by {difference}"
        )

    measured = {"top1": None, "loss": None, "top1_before": None}
    if not args.no_eval:
        measured["top1_before"], _ = evaluate(place(model, machine), data, machine)
        measured["top1"], measured["loss"] = evaluate(place(pruned.network, machine), data, machine)
        say(f"top-1 {measured['top1_before']:.2f} % -> {measured['top1']:.2f} %")
    if task.latency:
        measured["latency_share"] = task.latency(pruned.network)
    measured |= {
        "max_logit_difference": difference,
        "pruning_seconds": pruning_seconds,
        "seconds": time.perf_counter() - start,
    }
    entered = stages.costs(model, data.image_size)
    share_cut = 1 - after["effective_macs"] / entered["effective_macs"]
    dense = parent["pruning"]["dense"] if parent["pruning"] else parent["spec"]
    record = options.record(args, name, pruned, dense, share_cut)
    return stages.hand_over(
        run, args, machine, "pruned", pruned.model, data, measured, parent, record, pruned.network
    )


def task_for(
    args: argparse.Namespace,
    machine: Machine,
    file: Path,
    parent: Checkpoint,
    data: Data,
) -> Task:
    """What the method may look at: training images, the clock, measured sensitivities."""
    earlier = parent["pruning"]
    dense = earlier["dense"] if earlier else parent["spec"]
    curves = None
    if args.allocation == "sensitivity":
        curves = sensitivities(args, machine, file, parent, data)["drops"]
    clock = None
    if args.target_latency:
        # The values of the weights do not matter to the clock.
        size = (args.batch_size, 3, data.image_size, data.image_size)
        clock = partial(relative_latency, build(dense), size, machine)
    evidence = Evidence(args.seed, lambda: sample(data, EVIDENCE_IMAGES, args.seed))
    return Task(
        args, cost_of(dense, data.image_size), data.image_size, evidence, earlier, clock, curves
    )


def sensitivities(
    args: argparse.Namespace, machine: Machine, file: Path, parent: Checkpoint, data: Data
) -> dict:
    """Group -> ratio -> accuracy drop on training images; measured once, then read again."""
    name = f"{args.criterion}-{args.scope}-{args.parent[:8]}.json"
    alone = args.save if args.sensitivity else None
    cache = (alone or stages.default_folder(args)) / "sensitivity" / name
    wanted = {"parent": args.parent, "images": SENSITIVITY_IMAGES, "criterion": args.criterion}
    wanted |= {"scope": args.scope, "seed": args.seed, "mean": data.mean, "std": data.std}
    groups, _ = select(channel_groups(parent["spec"]), [], args.scope)
    with contextlib.suppress(Exception):  # missing, damaged, whatever it is: measured again
        found = json.loads(cache.read_text())
        drops = [found["drops"][group.name][f"{r:g}"] for group in groups for r in RATIOS]
        usable = wanted.items() <= found.items() and all(map(math.isfinite, drops))
        if usable and not (args.force and args.sensitivity):
            say(f"sensitivities read from {cache}")
            return {**found, "file": str(cache)}  # the folder may have moved
    model = checkpoints.model_of(parent, file)
    evidence = Evidence(args.seed, lambda: sample(data, EVIDENCE_IMAGES, args.seed))
    scores = score(model, groups, args.criterion, evidence)
    subset = data.train.draw(SENSITIVITY_IMAGES, args.seed)

    def accuracy(network: nn.Module) -> float:
        return evaluate(place(network, machine), data, machine, subset)[0]

    bar = partial(tqdm, desc="sensitivity", unit="group", disable=None)
    drops = sensitivity.measure(model, groups, scores, accuracy, bar)
    found = {**wanted, "file": str(cache), "drops": drops}
    write_text(cache, json.dumps(found) + "\n")
    say(f"sensitivities of {len(groups)} groups written to {cache}")
    return found


if __name__ == "__main__":
    cli.run_script(build_parser, main)
