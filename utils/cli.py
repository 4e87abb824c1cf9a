"""What the scripts' command lines share: flags, default folders, errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models import ARCHS, SHORTCUTS, STAGES

from .data import AUGMENTATIONS, DATASETS
from .log import say
from .machine import rank
from .runs import plain
from .train import LR_SCHEDULES, Recipe

# Flags that say where or how to run, but not what comes out.
INCIDENTAL = {
    *("save", "model", "refine", "like", "teacher", "data"),
    *("device", "threads", "force", "debug"),
}


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


def add_run_flags(p: argparse.ArgumentParser) -> None:
    """What to work on, where to put it, on which machine."""
    which = p.add_argument_group("which run")
    which.add_argument("--dataset", choices=DATASETS, help="(default: cifar100)")
    which.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="where the images are"
    )
    which.add_argument(
        "--image-size", type=number(int, 8), metavar="N", help="pixels (default: 32)"
    )
    which.add_argument("--arch", choices=ARCHS, help="(default: resnet)")
    which.add_argument("--depth", type=int, choices=sorted(STAGES), help="(default: 50)")
    which.add_argument(
        "--width",
        type=number(int, 1),
        metavar="N",
        help="channels of the first stage (default: 64, or 16 for the thin depths)",
    )
    which.add_argument(
        "--shortcut", choices=SHORTCUTS, help="(default: B, or A for the thin depths)"
    )
    which.add_argument("--seed", type=number(int, 0, 2**31), metavar="N", help="(default: 0)")
    which.add_argument("--save", type=Path, metavar="DIR", help="run folder (default: in runs/)")
    which.add_argument("--force", action="store_true", help="start over, whatever DIR holds")
    add_machine_flags(p)


def add_machine_flags(p: argparse.ArgumentParser) -> None:
    """Where and how to compute."""
    g = p.add_argument_group("machine")
    g.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute")
    g.add_argument(
        "--threads", type=number(int, 1, 1024), metavar="N", help="of the CPU (default: all)"
    )
    g.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where the hardware gains from it",
    )
    g.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_training_flags(p: argparse.ArgumentParser, defaults: Recipe | None) -> None:
    """How to train. A flag that is not given is None, for the stage to fill from a recipe."""
    g = p.add_argument_group("training")
    add = g.add_argument
    actions = [
        add("--epochs", type=number(int, 1), metavar="N", help="passes over the images"),
        add("--batch-size", type=number(int, 2), metavar="N", help="of all processes"),
        add("--lr", type=number(float, 0, open_low=True), metavar="X", help="at its peak"),
        add("--lr-schedule", choices=LR_SCHEDULES, help="of the learning rate"),
        add("--momentum", type=number(float, 0, 1), metavar="X", help="Nesterov's"),
        add("--weight-decay", type=number(float, 0), metavar="X", help="on all parameters"),
        add("--label-smoothing", type=number(float, 0, 1), metavar="X", help="0 for none"),
        add("--augment", choices=AUGMENTATIONS, help="of the training images"),
    ]
    for action in actions if defaults else ():
        action.help += f" (default: {getattr(defaults, action.dest)})"
    g.add_argument(
        "--train-images",
        type=number(int, 2),
        metavar="N",
        help="use only N training images, drawn once and for all (default: all)",
    )
    g.add_argument("--compile", action="store_true", help="torch.compile the network")


def fill_recipe(args: argparse.Namespace, recipe: Recipe) -> None:
    """Fill the training flags that were not given."""
    for field, value in recipe._asdict().items():
        if getattr(args, field, None) is None:
            setattr(args, field, value)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The training flags as a Recipe."""
    return Recipe(**{field: getattr(args, field) for field in Recipe._fields})


def outcome_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that determine what comes out, for a run folder to compare."""
    flags = {k: plain(v) for k, v in sorted(vars(args).items()) if k not in INCIDENTAL}
    if args.dataset == "folder":  # the others have the same images wherever they are
        flags["data"] = str(args.data.resolve())
    return flags


def versions() -> dict[str, str | None]:
    """What produced a checkpoint: library versions and, in a git checkout, the commit."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10)
        commit = found.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {"torch": str(torch.__version__), "python": sys.version.split()[0], "commit": commit}


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
) -> None:
    """Parse, run, print the one JSON line, and exit with the documented code."""
    _open_missing_streams()
    args = build_parser().parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    code = 0
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = main(args)
        if rank() == 0:
            print(json.dumps(plain(result), allow_nan=False), flush=True)
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
