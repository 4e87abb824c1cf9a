"""Stage 1: train a dense network.

    python main.py --depth 50 --dataset cifar100
    python main.py --depth 20 --dataset synthetic --epochs 6
    torchrun --nproc-per-node 4 main.py --depth 50 --dataset cifar100

Writes model.pt, metrics.jsonl and result.json into runs/<dataset>/<arch><depth>/seed<k>/baseline
and prints the result as one JSON line. Called again it goes on where it was interrupted, or
prints the result again.
"""

import argparse

import torch

from models import build, new_spec
from utils import cli, stages
from utils.machine import Machine, prepare
from utils.runs import Run
from utils.train import BASELINE, fit, outcome


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    cli.add_run_flags(p)
    cli.add_training_flags(p, BASELINE)
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    stages.fill_defaults(args)
    folder = args.save or stages.default_folder(args) / "baseline"
    with Run(folder, cli.outcome_flags(args), args.force) as run:
        return run.result or train(args, run, machine)


def train(args: argparse.Namespace, run: Run, machine: Machine) -> dict:
    data = stages.load_data(args)
    torch.manual_seed(args.seed)
    classes, shape = len(data.classes), {"width": args.width, "shortcut": args.shortcut}
    model = build(new_spec(args.depth, classes, arch=args.arch, **shape))
    rows = fit(model, data, cli.recipe_of(args), run, machine, args.seed, compile=args.compile)
    return stages.hand_over(run, args, machine, "baseline", model, data, outcome(rows))


if __name__ == "__main__":
    cli.run_script(build_parser, main)
