"""Stage 2: prune a trained network. Trains nothing.

    python res50prune.py --depth 50 --dataset cifar100 --method l1 --ratio 0.6
    python res50prune.py --depth 56 --dataset cifar10 --ratio 0.6,0.3,0.1 --skip layer1.7 layer2.0
    python res50prune.py --depth 50 --dataset cifar100 --target-macs 0.5
    python res50prune.py --model resnet56.th --dataset cifar10 --save runs/mine
    python res50prune.py --depth 50 --dataset cifar100 --sensitivity

Works on any ResNet, in spite of its name. The input is the baseline of the same flags, or
--model: a checkpoint, a run folder, or a plain state dict of a torchvision-style ResNet trained
elsewhere. Prints what happened to each group of channels, the accuracy before and right after,
and the largest difference between the logits of the cut network and those of the big one with
the same channels masked; then the result as one JSON line.
"""

import utils.early  # noqa: F401

import argparse
import contextlib
import json
import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from measurement.timing import relative_latency
from models import build, channel_groups, cost_of, costs
from pruning import PruningConfig, Task, name_of, prune_step, resolve
from pruning.allocation import allocate, select
from pruning.criteria import Calibration, score
from pruning.refit import refit
from pruning.selection import with_fast_widths
from pruning.surgery import cut
from utils import checkpoint as checkpoints
from utils import cli
from utils import run as runs
from utils.checkpoint import Checkpoint, CheckpointError
from utils.config import Recipe, RunConfig, fill
from utils.data import Data, sample
from utils.device import Machine, place, prepare
from utils.doubts import warn
from utils.files import write_json
from utils.log import say, table
from utils.run import Outcome, Run
from utils.train import check, evaluate, recalibrate

CALIBRATION_IMAGES = 512
SENSITIVITY_IMAGES = 2000
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of a group that is cut alone


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    add = p.add_argument_group("input").add_argument
    add("--model", type=Path, metavar="CKPT", help="network to prune (default: the baseline)")
    cli.add_pruning_flags(p)
    add = p.add_argument_group("measurement").add_argument
    add("--no-eval", action="store_true", help="skip the accuracy")
    told = "only what cutting each group alone costs on training images, and a heat map of it"
    add("--sensitivity", action="store_true", help=told)
    cli.add_flags(p, PruningConfig, "batch_size")
    return p


def main(args: argparse.Namespace) -> dict:
    config, given = fill(RunConfig, vars(args)), vars(args)
    machine = prepare(config)
    parent = runs.read_parent(args.model, given, "baseline")
    runs.require_finished(parent)
    network = runs.network_for(given, parent)
    seed = parent.seed if args.seed is None else args.seed
    flags = {**cli.pruning_flags(args), "seed": seed, "batch_size": args.batch_size}
    step = with_fast_widths(resolve(flags), parent.dense)
    if step.round_to and args.round_to is None:
        say(f"widths will be multiples of {step.round_to}, which is fast; --round-to 1: any width")
    home = runs.default_folder(network, seed)
    if args.sensitivity:
        if step.method == "weight":
            raise ValueError("--sensitivity is measured on channels, not for --method weight")
        data = runs.data_for(network, config.data, parent)
        found = sensitivities(parent, step, data, machine, config.save or home, config.force)
        from reporting import plots  # matplotlib takes its time, and only this needs it

        plots.sensitivity(found["drops"], Path(found["file"]).with_suffix(".png"))
        return {"stage": "sensitivity", "dataset": network.dataset, **found}
    folder = home / name_of([*parent.steps, step]) / "pruned"
    folder = runs.output_folder(config, folder, parent)
    identity = {"network": asdict(network), "pruning": step.as_dict(), "parent": parent.sha256}
    identity |= {"no_eval": args.no_eval, "precision": config.precision}
    identity |= cli.plugins(args, [step])
    with Run(folder, identity, machine, config.force) as run:
        if run.result:
            return run.result
        data = runs.data_for(network, config.data, parent)
        name = "baseline" if config.save and folder.name != "baseline" else "imported"
        dense = (folder.parent if config.save else home) / name
        return prune(parent, step, data, run, home, dense)


def prune(
    parent: Checkpoint, step: PruningConfig, data: Data, run: Run, home: Path, dense: Path
) -> dict:
    start, machine, size = time.perf_counter(), run.machine, data.image_size
    model, drops, clock = parent.network(), None, None
    if step.allocation == "sensitivity":
        drops = sensitivities(parent, step, data, machine, home)["drops"]
    if step.target_latency:  # the values of the weights do not matter to the clock
        batch = (step.batch_size, 3, size, size)
        clock = partial(relative_latency, build(parent.dense), batch, machine)
    batches = partial(sample, data, CALIBRATION_IMAGES, step.seed)
    masks = parent.pruning.state.masks if parent.pruning else {}
    judged = data.train.draw(SENSITIVITY_IMAGES, step.seed)

    def accuracy(network: nn.Module) -> float:
        recalibrate(network, data, machine, Recipe(seed=step.seed))
        return evaluate(network, data, machine, judged)[0]

    task = Task(cost_of(parent.dense, size), size, batches, masks, clock, accuracy, drops)

    pruning_start = time.perf_counter()
    pruned, record = prune_step(model, step, task, parent.pruning)
    pruning_seconds = time.perf_counter() - pruning_start
    say(table(("group", "before", "after", "protected by"), pruned.rows))
    difference = check(pruned.reference, pruned.network, data)
    if step.refit:
        refit(model, pruned.network, record.state.kept_channels(), batches)
    before, after = costs(model, size), costs(pruned.network, size)
    for name, left in (("params", "nonzero_params"), ("macs", "effective_macs")):
        say(f"{name} {before[name]:,} -> {after[name]:,} ({after[left]:,} by weights not zero)")

    measured = {"top1": None, "loss": None, "top1_before": None}
    if not run.identity["no_eval"]:
        measured["top1_before"], loss = evaluate(place(model, machine), data, machine)
        if parent.stage == "elsewhere":
            warn(parent, model, data, machine)
            before = {"top1": measured["top1_before"], "loss": loss, "seconds": 0.0}
            if parent.steps:
                say("a network with masks does not become a run of its own")
            else:
                keep_dense(Outcome(model, before), data, run, dense)
        measured["top1"], measured["loss"] = evaluate(place(pruned.network, machine), data, machine)
        say(f"top-1 {measured['top1_before']:.2f} % -> {measured['top1']:.2f} %")
    if task.latency:
        measured["latency_share"] = task.latency(pruned.network)
    measured |= {"max_logit_difference": difference, "pruning_seconds": pruning_seconds}
    measured["seconds"] = time.perf_counter() - start
    outcome = Outcome(pruned.model, measured, record, pruned.network)
    return run.hand_over("pruned", outcome, data, parent)


def keep_dense(outcome: Outcome, data: Data, run: Run, folder: Path) -> None:
    """Leave a network from elsewhere as a run, for benchmark.py and report.py to compare with."""
    identity = {name: run.identity[name] for name in ("network", "parent", "precision")}
    try:
        if (folder / "model.pt").exists():
            known = checkpoints.load(folder)
            if known.stage != "imported" or known.history[-1]["parent"] != identity["parent"]:
                raise ValueError(f"{folder} holds another network")
        with Run(folder, identity, run.machine, run.forced) as dense:
            if not dense.result:
                dense.hand_over("imported", outcome, data)
        say(f"the network as it was is now a run in {folder}")
    except (OSError, ValueError, CheckpointError) as error:
        advice = "with a --save in a folder of its own it would"
        say(f"the network as it was did not become a run ({error}); {advice}")


def sensitivities(
    parent: Checkpoint,
    step: PruningConfig,
    data: Data,
    machine: Machine,
    folder: Path,
    fresh: bool = False,
) -> dict[str, Any]:
    """Under "drops": group -> ratio -> points of accuracy lost on training images.

    Each group is measured once, and kept in a file in `folder` for this network, criterion and
    images.
    """
    made = {"parent": parent.sha256, "images": SENSITIVITY_IMAGES, "seed": step.seed}
    made |= {"criterion": step.criterion, "scope": step.scope, "mean": data.mean, "std": data.std}
    made |= {"train_images": len(data.train.labels), "device": machine.device.type}
    made["precision"] = str(machine.dtype)
    file = folder / f"sensitivity/{step.criterion}-{step.scope}-{parent.sha256[:8]}.json"
    groups, _ = select(channel_groups(parent.spec), [], step.scope)
    drops = {} if fresh else measured_drops(file, made)
    missing = [group for group in groups if group.name not in drops]
    if drops:
        say(f"sensitivities read from {file}: {len(groups) - len(missing)} of {len(groups)} groups")
    if missing:
        model = parent.network()
        batches = partial(sample, data, CALIBRATION_IMAGES, step.seed)
        scores = score(model, groups, step.criterion, Calibration(step.seed, batches))
        subset = data.train.draw(SENSITIVITY_IMAGES, step.seed)

        def accuracy(network: nn.Module) -> float:
            return evaluate(place(network, machine), data, machine, subset)[0]

        whole = accuracy(model)
        for group in tqdm(missing, "sensitivity", unit="group", disable=None):
            drops[group.name] = {  # coupled channels together; keys are text, as in JSON
                f"{ratio:g}": whole - accuracy(cut(model, allocate([group], scores, ratio)))
                for ratio in RATIOS
            }
            write_json(file, {**made, "drops": drops})
        say(f"sensitivities of {len(missing)} groups written to {file}")
    return {**made, "file": str(file), "drops": {group.name: drops[group.name] for group in groups}}


def measured_drops(file: Path, made: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a file has of sensitivities that were made alike; of one that is none, nothing."""
    with contextlib.suppress(Exception):  # missing, damaged, whatever it is: measured again
        found = json.loads(file.read_text())
        if made.items() <= found.items():
            ratios = {f"{ratio:g}" for ratio in RATIOS}
            return {
                name: drops
                for name, drops in found["drops"].items()
                if drops.keys() == ratios and all(map(math.isfinite, drops.values()))
            }
    return {}


def summary(result: dict[str, Any]) -> str:
    if result["stage"] == "sensitivity":
        return f"sensitivity  {result['file']}, and a heat map beside it"
    return cli.stage_summary(result)


if __name__ == "__main__":
    cli.run_script(build_parser, main, summary)
