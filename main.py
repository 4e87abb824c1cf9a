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
from pathlib import Path
from typing import Any

import torch

from models import Cost, Spec, build, cost_of, new_spec
from pruning import options
from pruning.methods import METHODS, Task, hooks
from utils import cli, stages
from utils.checkpoint import Checkpoint
from utils.machine import Machine, prepare
from utils.runs import Run
from utils.train import BASELINE, Hooks, fit, outcome


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    g = p.add_argument_group("control")
    g.add_argument("--like", type=Path, metavar="CKPT", help="train this architecture")
    g.add_argument(
        "--budget",
        choices=("epochs", "flops"),
        default="epochs",
        help="with --like: as many --epochs as the dense network, or as many FLOPs as they take it",
    )
    options.add_pruning_flags(p)
    cli.add_training_flags(p, BASELINE)
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    original, source = None, None
    if args.like:
        source, original = stages.read_input(args, args.like, "")
        name = imitate(args, original)
    elif options.any_given(args):
        name = f"{options.tag(args)}/scratch"
        options.fill_defaults(args)
        if not METHODS[args.method].from_scratch:
            raise ValueError(f"--method {args.method} prunes a trained network: see res50prune.py")
    else:
        name = "baseline"
    stages.fill_defaults(args)
    folder = stages.output_folder(args, name, source)
    with Run(folder, cli.outcome_flags(args), args.force) as run:
        return run.result or train(args, run, machine, original)


def imitate(args: argparse.Namespace, original: Checkpoint) -> str:
    """Settle the epochs of a control, and name its folder."""
    if options.any_given(args):
        raise ValueError("--like takes its pruning from the checkpoint: leave the other flags out")
    pruning = original["pruning"]
    if not pruning:
        raise ValueError(f"--like {args.like}: that network is not pruned")
    if args.budget == "flops":
        cost = cost_of(original["spec"], original["data"]["image_size"])
        args.epochs = round(args.epochs * pruning["dense"]["macs"] / cost.macs)
    return f"{pruning['name']}/scratch" + ("-flops" if args.budget == "flops" else "")


def train(
    args: argparse.Namespace, run: Run, machine: Machine, original: Checkpoint | None
) -> dict:
    data = stages.load_data(args, original)
    shape = {"arch": args.arch, "width": args.width, "shortcut": args.shortcut}
    spec = original["spec"] if original else new_spec(args.depth, len(data.classes), **shape)
    torch.manual_seed(args.seed)
    model = build(spec)
    pruning = record_of(args, spec, model, data.image_size, original)
    method = METHODS[pruning["method"]] if pruning else None
    taking_part = Hooks(**hooks(model, pruning))
    recipe = cli.recipe_of(args)
    how = {"compile": args.compile, "hooks": taking_part}
    rows = fit(model, data, recipe, run, machine, args.seed, **how)
    if method and method.finish:
        model, changes = method.finish(model, pruning)
        pruning = {**pruning, **changes}
    stage = "scratch" if pruning else "baseline"
    return stages.hand_over(run, args, machine, stage, model, data, outcome(rows), pruning=pruning)


def record_of(
    args: argparse.Namespace,
    spec: Spec,
    model: torch.nn.Module,
    image_size: int,
    original: Checkpoint | None,
) -> dict[str, Any] | None:
    """What a checkpoint says about pruning, for a network that is not trained yet."""
    if original:
        return {
            k: v for k, v in original["pruning"].items() if k not in ("kept", "soft", "gradual")
        }
    if not args.method:
        return None
    dense: Cost = cost_of(spec, image_size)
    pruned = METHODS[args.method].prune(model, Task(args, dense, image_size))
    return options.record(args, options.tag(args), pruned, dense, 0.0)


if __name__ == "__main__":
    cli.run_script(build_parser, main)
