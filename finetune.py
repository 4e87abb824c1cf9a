"""Stage 3: recover the accuracy of a pruned network by training it further.

    python finetune.py --depth 50 --dataset cifar100 --method l1 --ratio 0.6
    python finetune.py --refine runs/mine/pruned --save runs/mine/finetuned
    python finetune.py --depth 50 --dataset cifar100 --ratio 0.6 --recipe lr-rewind
    python finetune.py --depth 50 --dataset cifar100 --ratio 0.6 --teacher runs/.../baseline
    torchrun --nproc-per-node 4 finetune.py --depth 50 --dataset cifar100 --ratio 0.6

The input is what res50prune.py wrote for the same flags, or --refine: a checkpoint or a run
folder. It does what the method in the checkpoint needs. Recipes (single training flags override
them; all take 40 epochs unless --epochs says otherwise, so that they compare):

    default    one cycle; its peak learning rate rises with what was cut, from 0.01 to 0.1
    li2017     the literal one of that paper: 0.001 throughout
    lr-rewind  the last epochs of the schedule that the dense network was trained with
"""

import argparse
from functools import partial
from pathlib import Path

from torch import nn

from pruning import options
from pruning.methods import finish, hooks
from utils import checkpoint as checkpoints
from utils import cli, stages
from utils.checkpoint import Checkpoint
from utils.data import Data
from utils.files import sha256
from utils.log import say
from utils.machine import Machine, place, prepare
from utils.runs import Run
from utils.train import (
    BASELINE,
    LI2017,
    Hooks,
    Recipe,
    evaluate,
    fit,
    outcome,
    reestimate_batchnorm,
)


def default_recipe(parent: Checkpoint) -> Recipe:
    share_cut = parent["pruning"]["share_cut"] if parent["pruning"] else 0.0
    return BASELINE._replace(epochs=40, lr=round(0.01 * 10**share_cut, 4))


def lr_rewind(parent: Checkpoint) -> Recipe:
    """The schedule of the dense network again (Renda et al. 2020, arXiv 2003.02389, section 3)."""
    told = stages.trained_with(parent)
    if not told:
        raise ValueError("--recipe lr-rewind: the checkpoint does not tell how it was trained")
    recipe = Recipe(**{field: told[field] for field in BASELINE._fields if field in told})
    return recipe._replace(epochs=min(40, recipe.epochs))


RECIPES = {"default": default_recipe, "li2017": lambda parent: LI2017, "lr-rewind": lr_rewind}


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    g = p.add_argument_group("input")
    g.add_argument("--refine", type=Path, metavar="CKPT", help="(default: the pruned network)")
    g.add_argument("--recipe", choices=RECIPES, default="default", help="how to train")
    g.add_argument("--teacher", type=Path, metavar="CKPT", help="distil this network's logits")
    g.add_argument("--temperature", type=cli.number(float, 1), metavar="T", help="of both logits")
    g.add_argument(
        "--teacher-weight", type=cli.number(float, 0, 1), metavar="X", help="in the loss"
    )
    g.add_argument(
        "--reestimate-bn",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="average BatchNorm's statistics anew before training",
    )
    options.add_pruning_flags(p)
    cli.add_training_flags(p, None)
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    file, parent = stages.read_input(args, args.refine, f"{options.tag(args)}/pruned")
    options.inherit(args, parent["pruning"])
    cli.fill_recipe(args, RECIPES[args.recipe](parent))
    if args.recipe == "lr-rewind":
        args.lr_start = max(0.0, 1 - args.epochs / stages.trained_with(parent)["epochs"])
    name = "finetuned" if args.recipe == "default" else f"finetuned-{args.recipe}"
    if args.teacher:
        args.teacher_hash = sha256(checkpoints.find(args.teacher))
        name += "-taught"
    if args.reestimate_bn:
        name += "-bn"
    if parent["pruning"]:
        name = f"{parent['pruning']['name']}/{name}"
    folder = stages.output_folder(args, name, file)
    with Run(folder, cli.outcome_flags(args), args.force) as run:
        return run.result or recover(args, run, machine, file, parent)


def recover(
    args: argparse.Namespace, run: Run, machine: Machine, file: Path, parent: Checkpoint
) -> dict:
    data = stages.load_data(args, parent)
    model = checkpoints.model_of(parent, file)
    pruning = parent["pruning"]
    recipe, teacher = cli.recipe_of(args), load_teacher(args, machine, data)
    settle = partial(
        reestimate_batchnorm, data=data, machine=machine, augment=recipe.augment, seed=args.seed
    )
    measured = {}
    if args.reestimate_bn:
        settle(model)
        measured["top1_reestimated"], _ = evaluate(model, data, machine)
        say(f"top-1 with BatchNorm re-estimated: {measured['top1_reestimated']:.2f} %")
    how = {"compile": args.compile, "hooks": Hooks(**hooks(model, pruning, settle))}
    rows = fit(model, data, recipe, run, machine, args.seed, **how, teacher=teacher)
    measured = {**outcome(rows), **measured}
    if pruning:
        model, pruning = finish(model, pruning, settle)
        measured |= {k: v for k, v in pruning.items() if k == "channels_removed"}
    return stages.hand_over(run, args, machine, "finetuned", model, data, measured, parent, pruning)


def load_teacher(args: argparse.Namespace, machine: Machine, data: Data) -> nn.Module | None:
    if args.teacher is None:
        return None
    file = checkpoints.find(args.teacher)
    checkpoint = checkpoints.load(file)
    for key, value in data.description().items():
        if key != "dataset" and checkpoint["data"][key] != value:
            raise ValueError(f"--teacher {file} was trained with other {key} than the network")
    return place(checkpoints.model_of(checkpoint, file), machine).eval().requires_grad_(False)


if __name__ == "__main__":
    cli.run_script(build_parser, main)
