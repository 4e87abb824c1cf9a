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

import utils.early  # noqa: F401

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruning import name_of, resolve
from pruning.config import flag
from utils import cli
from utils import run as runs
from utils.checkpoint import Checkpoint
from utils.config import NetworkConfig, Recipe, RunConfig, fill
from utils.data import Data
from utils.device import place, prepare
from utils.doubts import warn
from utils.log import say
from utils.run import Run
from utils.train import evaluate, fit, recalibrate


def default_recipe(parent: Checkpoint) -> Recipe:
    share_cut = parent.pruning.share_cut if parent.pruning else 0.0
    return Recipe(epochs=40, lr=round(0.01 * 10**share_cut, 4))


def li2017(parent: Checkpoint) -> Recipe:
    """The last learning rate of training throughout (Li et al. 2017, arXiv 1608.08710, sec. 4)."""
    literal = {"lr": 0.001, "lr_schedule": "constant", "weight_decay": 1e-4}
    return Recipe("li2017", epochs=40, label_smoothing=0.0, **literal)


def lr_rewind(parent: Checkpoint) -> Recipe:
    """The schedule of the dense network again (Renda et al. 2020, arXiv 2003.02389, section 3)."""
    told = parent.trained_with()
    if not told:
        raise ValueError("--recipe lr-rewind: the checkpoint does not tell how it was trained")
    own = {"name": "lr-rewind", "epochs": min(40, told["recipe"]["epochs"])}
    return fill(Recipe, own, told["recipe"])


RECIPES = {"default": default_recipe, "li2017": li2017, "lr-rewind": lr_rewind}


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    group = p.add_argument_group("input")
    add = group.add_argument
    told = "network to train further (default: the pruned one)"
    add("--refine", type=Path, metavar="CKPT", help=told)
    add("--recipe", choices=RECIPES, default="default", help="way to train (default: default)")
    add("--teacher", type=Path, metavar="CKPT", help="network whose logits are distilled")
    cli.add_flags(group, Recipe, "temperature", "teacher_weight", "recalibrate")
    cli.add_pruning_flags(p)
    cli.add_training_flags(p, usual=False)
    return p


def find_parent(given: dict[str, Any], pruning: dict[str, Any]) -> Checkpoint:
    """The pruned network. Raises ValueError if it was pruned in another way than is asked for."""
    wanted = resolve(pruning)
    parent = runs.read_parent(given["refine"], given, f"{name_of([wanted])}/pruned")
    step = parent.steps[-1] if parent.steps else None
    for name in pruning:
        value, found = getattr(wanted, name), getattr(step, name, None)
        if value != found:
            raise ValueError(f"{flag(name)} {value} contradicts {parent.file}, which has {found}")
    return parent


def resolve_recipe(given: dict[str, Any], parent: Checkpoint, teacher: str | None) -> Recipe:
    """The recipe by name, with the single flags that were given and the hash of a teacher."""
    base = RECIPES[given["recipe"]](parent)
    usual = {"seed": parent.seed, "compile": False}  # unlike those of lr-rewind's training
    recipe = fill(Recipe, {"teacher": teacher}, given, usual, vars(base))
    if recipe.name == "lr-rewind" and given["lr_start"] is None:
        start = 1 - recipe.epochs / parent.trained_with()["recipe"]["epochs"]
        recipe = replace(recipe, lr_start=max(0.0, start))
    return recipe


def folder_for(network: NetworkConfig, recipe: Recipe, parent: Checkpoint) -> Path:
    """The default, beside this run's others."""
    name = "finetuned" if recipe.name == "default" else f"finetuned-{recipe.name}"
    name += ("-taught" if recipe.teacher else "") + ("-bn" if recipe.recalibrate else "")
    return runs.default_folder(network, recipe.seed) / name_of(parent.steps) / name


def main(args: argparse.Namespace) -> dict:
    config, given = fill(RunConfig, vars(args)), vars(args)
    machine = prepare(config)
    parent = find_parent(given, cli.pruning_flags(args))
    # Of a teacher from elsewhere it is not known what images it is for: those of its student.
    same = {"dataset": parent.data["dataset"], "image_size": parent.image_size}
    teacher = runs.read_parent(args.teacher, given | same, "") if args.teacher else None
    network = runs.network_for(given, parent)
    recipe = resolve_recipe(given, parent, teacher.sha256 if teacher else None)
    folder = runs.output_folder(config, folder_for(network, recipe, parent), parent, teacher)
    identity = {"network": asdict(network), "recipe": asdict(recipe)}
    identity |= {"parent": parent.sha256, "precision": config.precision}
    identity |= cli.plugins(args, parent.steps)
    with Run(folder, identity, machine, config.force) as run:
        if run.result:
            return run.result
        data = runs.data_for(network, config.data, parent)
        return recover(parent, data, recipe, run, teacher)


def recover(
    parent: Checkpoint, data: Data, recipe: Recipe, run: Run, teacher: Checkpoint | None
) -> dict:
    model, record, measured, expert = parent.network(), parent.pruning, {}, None
    warn(parent, model, data, run.machine)
    if teacher:
        expert = place(network_of(teacher, data), run.machine).eval().requires_grad_(False)
        warn(teacher, expert, data, run.machine)
    if recipe.recalibrate:
        recalibrate(model, data, run.machine, recipe)
        measured["top1_recalibrated"], _ = evaluate(model, data, run.machine)
        say(f"top-1 with BatchNorm recalibrated: {measured['top1_recalibrated']:.2f} %")
    trained = fit(model, data, recipe, run, record and record.method(), expert)
    outcome = trained.outcome(record)
    outcome.measured |= measured
    return run.hand_over("finetuned", outcome, data, parent)


def network_of(teacher: Checkpoint, data: Data) -> nn.Module:
    """The teacher's network. Raises ValueError if it is known to be for other images."""
    if teacher.spec["num_classes"] != len(data.classes):
        told = f"{teacher.spec['num_classes']} classes, the images {len(data.classes)}"
        raise ValueError(f"--teacher {teacher.file} has {told}")
    for key, value in data.description().items():
        if key not in ("dataset", "directory") and teacher.data.get(key) not in (None, value):
            raise ValueError(f"--teacher {teacher.file} was trained with other {key}")
    return teacher.network()


if __name__ == "__main__":
    cli.run_script(build_parser, main, cli.stage_summary)
