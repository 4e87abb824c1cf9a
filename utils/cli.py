"""What the scripts' command lines share: flags, summaries, errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch.distributed as dist

from models import ARCHS, SHORTCUTS, STAGES
from pruning import METHODS, PruningConfig
from pruning.config import ALIASES, ALLOCATIONS, SCOPES
from pruning.criteria import CRITERIA, WORDS
from pruning.soft import SCHEDULES
from pruning.weight import WEIGHT_CRITERIA

from .config import NetworkConfig, Recipe, RunConfig, fill
from .data import AUGMENTATIONS, DATASETS
from .device import rank
from .log import say
from .run import plain
from .train import LR_SCHEDULES

PRUNING = [f.name for f in fields(PruningConfig) if f.name not in ("seed", "batch_size")]


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples as they stand, and shows defaults (but not those that are None)."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def parser(docstring: str) -> argparse.ArgumentParser:
    """An argument parser whose description is a script's docstring."""
    return argparse.ArgumentParser(description=docstring, formatter_class=_Help, allow_abbrev=False)


def number(kind: type, low: float, high: float = 1e9, open_low: bool = False) -> Callable:
    """An argparse type: a number of `kind` from `low` to `high` (above `low` if `open_low`)."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or (open_low and value == low):
            bounds = f"{'above' if open_low else 'at least'} {low}, at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text[:20]} is not {bounds}")
        return value

    parse.__name__ = kind.__name__
    return parse


def _ratio(text: str) -> float | tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    return values[0] if len(values) == 1 else values


_ratio.__name__ = "ratio"


def add_run_flags(p: argparse.ArgumentParser) -> None:
    """What to work on, where to put it, on which machine."""
    usual = NetworkConfig()
    add = p.add_argument_group("network and data").add_argument
    add("--dataset", choices=DATASETS, help=f"images (default: {usual.dataset})")
    add("--data", type=Path, default=RunConfig.data, metavar="DIR", help="folder of the images")
    size = f"height and width in pixels (default: {usual.image_size})"
    add("--image-size", type=number(int, 8), metavar="N", help=size)
    many = "random subset of N training images (default: all)"
    add("--train-images", type=number(int, 2), metavar="N", help=many)
    add("--arch", choices=ARCHS, help=f"kind of blocks (default: {usual.arch})")
    depth = f"number of layers (default: {usual.depth})"
    add("--depth", type=int, choices=sorted(STAGES), help=depth)
    width = "channels of the first stage (default: 64, or 16 for the thin depths)"
    add("--width", type=number(int, 1), metavar="N", help=width)
    shortcut = "zero padding (A, A-end) or projection (default: B, or A for the thin depths)"
    add("--shortcut", choices=SHORTCUTS, help=shortcut)
    add("--seed", type=number(int, 0, 2**31), metavar="N", help="random seed (default: 0)")
    add = p.add_argument_group("output").add_argument
    add("--save", type=Path, metavar="DIR", help="run folder (default: in runs/)")
    add("--force", action="store_true", help="fresh start, whatever DIR holds")
    add_machine_flags(p)


def add_machine_flags(p: argparse.ArgumentParser) -> None:
    """Where and how to compute."""
    add = p.add_argument_group("machine").add_argument
    add("--device", default="auto", metavar="auto|cpu|cuda", help="device to compute on")
    add("--threads", type=number(int, 1, 1024), metavar="N", help="CPU threads (default: all)")
    precision = "number format of convolutions; auto: bf16 where the hardware gains from it"
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=precision)


def add_training_flags(p: argparse.ArgumentParser, usual: Recipe | None = None) -> None:
    """How to train. A flag that is not given is None, for the stage to fill from a recipe."""
    add = p.add_argument_group("training").add_argument
    actions = [
        add("--epochs", type=number(int, 1), metavar="N", help="passes over the training images"),
        add("--batch-size", type=number(int, 2), metavar="N", help="images of a step, in all"),
        add("--lr", type=number(float, 0, open_low=True), metavar="X", help="peak learning rate"),
        add("--lr-schedule", choices=LR_SCHEDULES, help="course of the learning rate"),
        add("--momentum", type=number(float, 0, 1), metavar="X", help="Nesterov momentum"),
        add("--weight-decay", type=number(float, 0), metavar="X", help="L2 penalty on all weights"),
        add("--label-smoothing", type=number(float, 0, 1), metavar="X", help="0 for none"),
        add("--augment", choices=AUGMENTATIONS, help="augmentation of the training images"),
    ]
    for action in actions if usual else ():
        action.help += f" (default: {getattr(usual, action.dest)})"
    add("--compile", action="store_true", help="torch.compile for the network")


def add_pruning_flags(p: argparse.ArgumentParser) -> None:
    """How to prune. In a later stage the same flags find the run again."""
    g = p.add_argument_group("pruning")
    methods = [*METHODS, *ALIASES]
    told = "l1 (or filters): cut filters; soft: zero them while training, then cut; weight "
    told += "(or unstructured): mask single weights (default: l1)"
    g.add_argument("--method", choices=methods, help=told)
    add = g.add_mutually_exclusive_group().add_argument
    told = "fraction to remove (default: 0.3); with commas: one for each stage of the network"
    add("--ratio", type=_ratio, metavar="R[,R...]", help=told)
    for name, what in (("macs", "MACs"), ("params", "parameters"), ("latency", "latency")):
        told = f"fraction of the dense network's {what} to keep"
        add(f"--target-{name}", type=float, metavar="F", help=told)
    add("--pattern", metavar="N:M", help="weight: N weights kept of every M")
    add = g.add_argument
    told = "; ".join(f"{name}: {words}" for name, words in WORDS.items())
    told += " (default: l1; soft: l2; weight: magnitude)"
    criteria = dict.fromkeys([*CRITERIA, *WEIGHT_CRITERIA])
    add("--criterion", choices=criteria, help=told)
    told = "inner: within blocks; all: the residual sum too (default: inner)"
    add("--scope", choices=SCOPES, help=told)
    told = "layer: the ratio everywhere; global: where scores are lowest; sensitivity: where "
    told += "accuracy suffers least (default: layer; weight: global)"
    add("--allocation", "--threshold", choices=ALLOCATIONS, help=told)
    told = "stages, blocks, groups or layers to leave whole"
    add("--skip", nargs="+", metavar="NAME", help=told)
    told = "least number of channels of a group, or least fraction if below 1 (default: 1; 0.1 "
    add("--min-keep", type=float, metavar="N", help=told + "unless --allocation is layer)")
    told = "multiple that widths are rounded to (default: 1; for a latency, what the device likes)"
    add("--round-to", type=int, metavar="N", help=told)
    told = "soft: rise of the ratio over the epochs (default: asymptotic)"
    add("--schedule", choices=SCHEDULES, help=told)
    told = "weight: pruning during fine-tuning, on a cubic schedule"
    add("--gradual", action="store_true", default=None, help=told)


def pruning_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about pruning."""
    given = {name: getattr(args, name) for name in PRUNING}
    return {name: value for name, value in given.items() if value is not None}


def run_config(args: argparse.Namespace) -> RunConfig:
    """Where and how to run."""
    return fill(RunConfig, vars(args))


class Interrupted(BaseException):
    """SIGINT or SIGTERM; what is on disk is whole, and the stage can be resumed."""


def _interrupt(signum: int, _frame: Any) -> None:
    signal.signal(signum, signal.SIG_DFL)  # a second one kills
    raise Interrupted(signum)


def _open_missing_streams() -> None:
    """Give a process that was started without standard streams something to write to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for good


def run_script(
    build_parser: Callable[[], argparse.ArgumentParser],
    main: Callable[[argparse.Namespace], dict[str, Any]],
    summary: Callable[[dict[str, Any]], str],
) -> None:
    """Parse, run, print the result, and exit with the documented code.

    The result is one JSON line or, on a terminal without --json, its `summary` for people.
    """
    _open_missing_streams()
    p = build_parser()
    p.add_argument("--json", action="store_true", help="JSON result on a terminal, too")
    p.add_argument("--debug", action="store_true", help="traceback of an error")
    args = p.parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    code = 0
    try:
        for_people = sys.stdout.isatty() and not args.json
        with contextlib.redirect_stdout(sys.stderr):
            result = plain(main(args))
        if rank() == 0:
            print(
                summary(result) if for_people else json.dumps(result, allow_nan=False), flush=True
            )
    except Interrupted as error:
        code = 128 + error.args[0]
        forced = " without --force" if getattr(args, "force", False) else ""
        trains = f"; if a whole epoch was done, the same command{forced} goes on from there"
        say("interrupted" + (trains if hasattr(args, "epochs") else "; nothing is left half-done"))
    except BrokenPipeError:
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # a user gets one line; --debug shows the rest
        code = 2 if isinstance(error, ValueError) else 1
        if args.debug:
            traceback.print_exc()
        lines = str(error).strip().splitlines()
        detail = lines[0] if lines else type(error).__name__
        if type(error).__module__ == "builtins" and not isinstance(error, (ValueError, OSError)):
            detail = f"{type(error).__name__}: {detail} (--debug shows where)"
        say(f"{Path(sys.argv[0]).name}: error: {detail}")
    if dist.is_initialized() and code == 0:
        dist.destroy_process_group()
    sys.exit(code)


def stage_summary(result: dict[str, Any]) -> str:
    """What stages 1 to 3 tell a person: what, how accurate, how small, where, and what next."""
    stage, folder = result["stage"], Path(result["checkpoint"]).parent
    lines = [f"{stage}: {result['arch']} {result['depth']} on {result['dataset']}"]
    if result["top1"] is not None:
        before = result.get("top1_before")
        lines.append(f"top-1     {result['top1']:.2f} %")
        lines[-1] += f", {before:.2f} % before" if before is not None else ""
    for name, kind in (("params", "nonzero_params"), ("macs", "effective_macs")):
        count, dense, left = result[name], result[f"dense_{name}"], result[kind]
        lines.append(f"{name:9} {count / 1e6:.2f} M, {dense / count:.2f}x fewer than dense")
        lines[-1] += f"; {left / 1e6:.2f} M not zero" if left < 0.99 * count else ""
    lines.append(f"file      {result['checkpoint']}")
    following = {"pruned": f"finetune.py --refine {folder}", "baseline": "res50prune.py --model "}
    following["baseline"] += f"{folder} --ratio 0.5"
    lines.append(f"next      python {following.get(stage, f'benchmark.py {folder}')}")
    return "\n".join(lines)
