"""Stage 1: train a network.

    python main.py --depth 50 --dataset cifar100
    python main.py --depth 26 --arch resnet_de --dataset synthetic --epochs 6
    python main.py --depth 20 --dataset cifar100 --method soft --ratio 0.6
    python main.py --like runs/cifar100/resnet50/seed0/l1-0.6/pruned --budget flops
    torchrun --nproc-per-node 4 main.py --depth 50 --dataset cifar100

Writes model.pt, metrics.jsonl and result.json into runs/<dataset>/<arch><depth>/seed<k>/baseline
and prints the result as one JSON line. Called again it goes on where it was interrupted, or
prints the result again. With --method it prunes while it trains. With --like it trains the
architecture of a pruned network from scratch: the control that pruning has to beat.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models import build, cost_of, new_spec
from pruning import METHODS, PruningConfig, Task, name_of, resolve
from pruning.masks import apply_masks
from utils import cli
from utils.checkpoint import Checkpoint, Pruning
from utils.config import NetworkConfig, Recipe, fill
from utils.device import prepare
from utils.run import (
    Outcome,
    Run,
    data_for,
    default_folder,
    network_for,
    output_folder,
    read_parent,
    require_finished,
)
from utils.train import fit


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    add = p.add_argument_group("control").add_argument
    add("--like", type=Path, metavar="CKPT", help="pruned network whose shape is trained anew")
    told = "with --like: as many epochs as the dense network took, or as many FLOPs"
    add("--budget", choices=("epochs", "flops"), default="epochs", help=told)
    cli.add_pruning_flags(p)
    cli.add_training_flags(p, Recipe())
    return p


class Job(NamedTuple):
    """What to train: a dense network, one that is pruned meanwhile, or the shape of another."""

    network: NetworkConfig
    recipe: Recipe
    step: PruningConfig | None = None
    original: Checkpoint | None = None

    @property
    def stage(self) -> str:
        return "like" if self.original else "scratch" if self.step else "baseline"

    @property
    def identity(self) -> dict[str, Any]:
        made: dict[str, Any] = {"network": asdict(self.network), "recipe": asdict(self.recipe)}
        made["parent"] = self.original.sha256 if self.original else None
        return made | ({"pruning": self.step.as_dict()} if self.step else {})

    @property
    def folder(self) -> Path:
        """The default, beside this run's others."""
        name = self.stage
        if self.step:
            name = f"{name_of([self.step])}/{name}"
        if self.original:
            flops = "-flops" if self.recipe.name == "equal-flops" else ""
            name = f"{name_of(self.original.steps)}/{name}{flops}"
        return default_folder(self.network, self.recipe.seed) / name


def resolve_job(given: dict[str, Any], pruning: dict[str, Any]) -> Job:
    """What the command line asks for. Raises ValueError for flags that do not go together."""
    if given["like"]:
        if pruning:
            raise ValueError("--like takes its pruning from the checkpoint: no other flags of it")
        return like(given)
    if given["budget"] == "flops":
        raise ValueError("--budget goes with --like")
    network, recipe = network_for(given), fill(Recipe, given)
    step = resolve({**pruning, "seed": recipe.seed}) if pruning else None
    if step and not METHODS[step.method].trains:
        raise ValueError(f"--method {step.method} prunes a trained network: see res50prune.py")
    return Job(network, recipe, step)


def like(given: dict[str, Any]) -> Job:
    """The shape of a pruned network, trained as the dense one was: as long, or as much."""
    original = read_parent(given["like"], given, "")
    require_finished(original)
    if not original.steps:
        raise ValueError(f"--like {original.file}: that network is not pruned")
    told = original.trained_with() or {"recipe": {}, "network": {}}
    network = network_for(given, original)
    network = replace(
        network, train_images=given["train_images"] or told["network"].get("train_images")
    )
    seed = {"seed": original.seed if given["seed"] is None else given["seed"], "name": "default"}
    recipe = fill(Recipe, seed, given, told["recipe"])
    if given["budget"] == "flops":
        dense = cost_of(original.dense, original.image_size)
        epochs = round(recipe.epochs * dense.macs / original.metrics["effective_macs"])
        recipe = replace(recipe, name="equal-flops", epochs=epochs)
    return Job(network, recipe, None, original)


def main(args: argparse.Namespace) -> dict:
    config = cli.run_config(args)
    machine = prepare(config.device, config.precision, config.threads)
    job = resolve_job(vars(args), cli.pruning_flags(args))
    folder = output_folder(config, job.folder, job.original)
    with Run(folder, job.identity, machine, config.force) as run:
        return run.result or train(job, run, config.data)


def train(job: Job, run: Run, directory: Path) -> dict:
    network, original = job.network, job.original
    data = data_for(network, directory, original)
    shape = {"arch": network.arch, "width": network.width, "shortcut": network.shortcut}
    spec = original.spec if original else new_spec(network.depth, len(data.classes), **shape)
    torch.manual_seed(job.recipe.seed)
    model, pruning = build(spec), None
    if original:  # its masks are part of its architecture
        state = {key: value for key, value in original.pruning.state.items() if key != "kept"}
        pruning = replace(original.pruning, state=state)
        apply_masks(model, state["masks"])
    elif job.step:
        method = METHODS[job.step.method](job.step)
        pruned = method.prune(model, Task(cost_of(spec, data.image_size), data.image_size))
        pruning = Pruning([job.step], pruned.ratio, spec, 0.0, vars(method.state))
    trained = fit(model, data, job.recipe, run, pruning.method() if pruning else None)
    if pruning:
        pruning = replace(pruning, state=vars(trained.state))
    outcome = Outcome(trained.network, trained.measured, pruning)
    return run.hand_over(job.stage, outcome, data)


if __name__ == "__main__":
    cli.run_script(build_parser, main, cli.stage_summary)
