"""Stage 3: recover the accuracy of a pruned network by training it further.

    python finetune.py --depth 50 --dataset cifar100 --method l1 --ratio 0.6
    python finetune.py --refine runs/mine/pruned --save runs/mine/finetuned
    python finetune.py --depth 50 --dataset cifar100 --ratio 0.6 --recipe li2017
    torchrun --nproc-per-node 4 finetune.py --depth 50 --dataset cifar100 --ratio 0.6

The input is what res50prune.py wrote for the same flags, or --refine: a checkpoint or a run
folder. It does what the method in the checkpoint needs. The default recipe is one cycle whose
peak learning rate rises with the share of the MACs that was cut, from 0.01 to 0.1; the recipe
li2017 is the literal one of that paper. Single training flags override the recipe.
"""

import argparse
from functools import partial
from pathlib import Path

from models import cost_of
from pruning import options
from pruning.methods import METHODS, Method
from utils import checkpoint as checkpoints
from utils import cli, stages
from utils.checkpoint import Checkpoint
from utils.machine import Machine, prepare
from utils.runs import Run
from utils.train import BASELINE, LI2017, Recipe, fit, outcome


def recipe_for(name: str, share_cut: float) -> Recipe:
    """The recipe of a name; `share_cut` is the share of the MACs that pruning removed."""
    if name == "li2017":
        return LI2017
    return BASELINE._replace(epochs=40, lr=round(0.01 * 10**share_cut, 4))


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    g = p.add_argument_group("input")
    g.add_argument("--refine", type=Path, metavar="CKPT", help="(default: the pruned network)")
    g.add_argument(
        "--recipe", choices=("default", "li2017"), default="default", help="how to train"
    )
    options.add_pruning_flags(p)
    cli.add_training_flags(p, None)
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    parent = stages.read_input(args, args.refine, f"{options.tag(args)}/pruned")
    pruning = parent["pruning"]
    options.inherit(args, pruning)
    spec, size = parent["spec"], parent["data"]["image_size"]
    share_cut = 1 - cost_of(spec, size).macs / pruning["before"]["macs"] if pruning else 0.0
    for field, value in recipe_for(args.recipe, share_cut)._asdict().items():
        if getattr(args, field) is None:
            setattr(args, field, value)
    name = "finetuned" if args.recipe == "default" else f"finetuned-{args.recipe}"
    if pruning:
        name = f"{options.tag(args)}/{name}"
    folder = args.save or stages.default_folder(args) / name
    with Run(folder, cli.outcome_flags(args), args.force) as run:
        return run.result or recover(args, run, machine, parent)


def recover(args: argparse.Namespace, run: Run, machine: Machine, parent: Checkpoint) -> dict:
    pruning = parent["pruning"]
    data = stages.load_data(args, parent)
    model = checkpoints.model_of(parent)
    method = METHODS[pruning["method"]] if pruning else Method(prune=None)
    hooks = {
        name: hook and partial(hook, model, pruning)
        for name, hook in method._asdict().items()
        if name.startswith("after_")
    }
    recipe = cli.recipe_of(args)
    rows = fit(model, data, recipe, run, machine, args.seed, compile=args.compile, **hooks)
    if method.finish:
        model = method.finish(model, pruning)
    return stages.hand_over(
        run, args, machine, "finetuned", model, data, outcome(rows), parent, pruning
    )


if __name__ == "__main__":
    cli.run_script(build_parser, main)
