"""Stage 1: train a network.

    python main.py --depth 50 --dataset cifar100
    python main.py --depth 26 --arch resnet_de --dataset synthetic --epochs 6
    python main.py --depth 20 --dataset cifar100 --method soft --ratio 0.6
    python main.py --like runs/cifar100/resnet50/seed0/l1-0.6/pruned --budget flops
    torchrun --nproc-per-node 4 main.py --depth 50 --dataset cifar100

Writes model.pt, metrics.jsonl and result.json into runs/<dataset>/<arch><depth>/seed<k>/baseline
and prints the result as one JSON line. Called again it goes on where it was interrupted, or
prints the result again. With --method it prunes while it trains, in <method>-<amount>/scratch.
With --like it trains the shape of a pruned network from scratch, in <method>-<amount>/like: the
control that pruning has to beat.
"""

import utils.early  # noqa: F401

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from models import Spec, build, cost_of, costs, new_spec
from pruning import METHODS, PruningConfig, Task, name_of, prune_step, resolve
from pruning.config import ALIASES
from pruning.masks import apply_masks
from pruning.selection import with_fast_widths
from utils import cli
from utils import run as runs
from utils.checkpoint import Checkpoint
from utils.config import NetworkConfig, Recipe, RunConfig, fill
from utils.data import Data
from utils.device import prepare
from utils.run import Run
from utils.train import fit


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    add = p.add_argument_group("control").add_argument
    add("--like", type=Path, metavar="CKPT", help="pruned network whose shape is trained anew")
    told = "with --like: the epochs (default) or the FLOPs of the dense network's training"
    add("--budget", choices=("epochs", "flops"), default="epochs", help=told)
    cli.add_pruning_flags(p)
    cli.add_training_flags(p)
    return p


def main(args: argparse.Namespace) -> dict:
    config, given, pruning = fill(RunConfig, vars(args)), vars(args), cli.pruning_flags(args)
    machine = prepare(config)
    original = read_original(args.like, given, pruning) if args.like else None
    network, recipe = resolve_training(given, original)
    step = pruning_step(pruning, recipe.seed, network) if pruning else None
    name = f"{name_of([step])}/scratch" if step else "baseline"
    if original:
        flops = "-flops" if recipe.name == "equal-flops" else ""
        name = f"{name_of(original.steps)}/like{flops}"
    folder = runs.output_folder(config, runs.default_folder(network, recipe.seed) / name, original)
    identity = {"network": asdict(network), "recipe": asdict(recipe)}
    identity |= {"parent": original.sha256 if original else None, "precision": config.precision}
    identity |= {"pruning": step.as_dict(), **cli.plugins(args, [step])} if step else {}
    with Run(folder, identity, machine, config.force) as run:
        if run.result:
            return run.result
        data = runs.data_for(network, config.data, original)
        if original:
            return train_like(original, data, recipe, run)
        return train(network, data, recipe, run, step)


def pruning_step(given: dict, seed: int, network: NetworkConfig) -> PruningConfig:
    """How to prune while training: gradually, where a method could also do it at once."""
    name = given.get("method", PruningConfig.method)
    gradual = "gradual" in METHODS[ALIASES.get(name, name)].flags and "pattern" not in given
    step = resolve({**given, "seed": seed} | ({"gradual": True} if gradual else {}))
    return with_fast_widths(step, spec_for(network, 1))


def spec_for(network: NetworkConfig, classes: int) -> Spec:
    """The dense network that the flags describe."""
    names = ("arch", "width", "shortcut", "stem", "stride")
    return new_spec(network.depth, classes, **{name: getattr(network, name) for name in names})


def read_original(path: Path, given: dict, pruning: dict) -> Checkpoint:
    """The pruned network whose shape is wanted. Raises ValueError if it is not pruned."""
    if pruning:
        raise ValueError("--like takes its pruning from the checkpoint; leave those flags out")
    original = runs.read_parent(path, given, "")
    runs.require_finished(original)
    if not original.steps:
        raise ValueError(f"--like {original.file}: that network is not pruned")
    return original


def resolve_training(given: dict, original: Checkpoint | None) -> tuple[NetworkConfig, Recipe]:
    """What to train and how.

    The control is trained as its dense network was: for as many epochs or as many operations.
    """
    network = runs.network_for(given, original)
    if original is None:
        if given["budget"] == "flops":
            raise ValueError("--budget goes with --like")
        if given["key"] or given["bn_eps"]:
            raise ValueError("--key and --bn-eps are for a network trained elsewhere")
        return network, fill(Recipe, given)
    told = original.trained_with() or {"recipe": {}, "network": {}}
    if network.train_images is None:
        network = replace(network, train_images=told["network"].get("train_images"))
    own = {"seed": original.seed, "name": "default", "compile": bool(given["compile"])}
    recipe = fill(Recipe, given, own, told["recipe"])
    if given["budget"] == "flops":
        dense = cost_of(original.dense, original.image_size)
        left = costs(original.network(), original.image_size)["effective_macs"]
        epochs = round(recipe.epochs * dense.macs / left)
        recipe = replace(recipe, name="equal-flops", epochs=epochs)
    return network, recipe


def train(
    network: NetworkConfig, data: Data, recipe: Recipe, run: Run, step: PruningConfig | None
) -> dict:
    """A dense network or, with a pruning step, one that is pruned meanwhile."""
    spec = spec_for(network, len(data.classes))
    torch.manual_seed(recipe.seed)
    model, record = build(spec), None
    if step:
        task = Task(cost_of(spec, data.image_size), data.image_size)
        _, record = prune_step(model, step, task)
        if not record.state.pending:
            raise ValueError("this prunes a trained network, and at once: see res50prune.py")
    record = record and replace(record, share_cut=0.0)  # the training recovers from the cut
    outcome = fit(model, data, recipe, run, record and record.method()).outcome(record)
    return run.hand_over("scratch" if step else "baseline", outcome, data)


def train_like(original: Checkpoint, data: Data, recipe: Recipe, run: Run) -> dict:
    """The shape of a pruned network, from scratch; its masks are part of the shape."""
    torch.manual_seed(recipe.seed)
    model = build(original.spec)
    record = replace(original.pruning, state=replace(original.pruning.state, kept={}))
    apply_masks(model, record.state.masks)
    outcome = fit(model, data, recipe, run, record.method()).outcome(record)
    return run.hand_over("like", outcome, data)


if __name__ == "__main__":
    cli.run_script(build_parser, main, cli.stage_summary)
