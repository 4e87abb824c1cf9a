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
from functools import partial
from pathlib import Path

import torch

from models import build, cost_of, new_spec
from pruning import options
from pruning.criteria import Evidence
from pruning.methods import METHODS, Task, finish, hooks
from utils import cli, stages
from utils.checkpoint import Checkpoint
from utils.machine import Machine, prepare
from utils.runs import Run
from utils.train import BASELINE, Hooks, Recipe, fit, outcome, reestimate_batchnorm


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    g = p.add_argument_group("control")
    g.add_argument("--like", type=Path, metavar="CKPT", help="train this architecture")
    g.add_argument(
        "--budget",
        choices=("epochs", "flops"),
        default="epochs",
        help="with --like: the epochs of the dense network, or the FLOPs that they took it",
    )
    options.add_pruning_flags(p)
    cli.add_training_flags(p, BASELINE)
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    recipe, name, source, original = BASELINE, "baseline", None, None
    if args.like:
        source, original = stages.read_input(args, args.like, "")
        recipe = recipe_like(args, source, original)
        name = f"{original['pruning']['name']}/like"
        name += "-flops" if args.budget == "flops" else ""
    elif args.budget == "flops":
        raise ValueError("--budget goes with --like")
    elif options.any_given(args):
        name = options.tag(args)
        options.fill_defaults(args)
        if not METHODS[args.method].from_scratch:
            raise ValueError(f"--method {args.method} prunes a trained network: see res50prune.py")
        args.name, name = name, f"{name}/scratch"
    cli.fill_recipe(args, recipe)
    stages.fill_defaults(args)
    folder = stages.output_folder(args, name, source)
    with Run(folder, cli.outcome_flags(args), args.force) as run:
        return run.result or train(args, run, machine, original)


def recipe_like(args: argparse.Namespace, source: Path, original: Checkpoint) -> Recipe:
    """How the dense network was trained, for as many epochs or as many operations."""
    stages.require_finished(original, source)
    if options.any_given(args):
        raise ValueError("--like takes its pruning from the checkpoint: leave the other flags out")
    if not original["pruning"]:
        raise ValueError(f"--like {source}: that network is not pruned")
    told = stages.trained_with(original) or {}
    args.train_images = args.train_images or told.get("train_images")
    recipe = BASELINE._replace(**{f: told[f] for f in BASELINE._fields if f in told})
    epochs = args.epochs or recipe.epochs
    if args.budget == "flops":
        dense = cost_of(original["pruning"]["dense"], original["data"]["image_size"])
        epochs = round(epochs * dense.macs / original["metrics"]["effective_macs"])
        args.epochs = None
    return recipe._replace(epochs=epochs)


def train(
    args: argparse.Namespace, run: Run, machine: Machine, original: Checkpoint | None
) -> dict:
    data = stages.load_data(args, original)
    shape = {"arch": args.arch, "width": args.width, "shortcut": args.shortcut}
    spec = original["spec"] if original else new_spec(args.depth, len(data.classes), **shape)
    torch.manual_seed(args.seed)
    model = build(spec)
    stage, pruning = "baseline", None
    if original:  # its masks are part of its architecture
        stage = "like"
        pruning = {k: v for k, v in original["pruning"].items() if k != "kept"}
    elif args.method:
        stage = "scratch"
        task = Task(args, cost_of(spec, data.image_size), data.image_size, Evidence(args.seed))
        pruned = METHODS[args.method].prune(model, task)
        pruning = options.record(args, args.name, pruned, spec, 0.0)
    settle = partial(
        reestimate_batchnorm, data=data, machine=machine, augment=args.augment, seed=args.seed
    )
    how = {"compile": args.compile, "hooks": Hooks(**hooks(model, pruning, settle))}
    rows = fit(model, data, cli.recipe_of(args), run, machine, args.seed, **how)
    if pruning:
        model, pruning = finish(model, pruning, settle)
    return stages.hand_over(run, args, machine, stage, model, data, outcome(rows), pruning=pruning)


if __name__ == "__main__":
    cli.run_script(build_parser, main)
