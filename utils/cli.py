"""What the scripts' command lines share: flags, summaries, errors and exit codes."""

import argparse
import contextlib
import ctypes
import importlib.util
import inspect
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from pruning import METHODS, PruningConfig
from pruning.config import ALIASES, flag
from pruning.criteria import CRITERIA
from pruning.weight import WEIGHT_CRITERIA

from .config import NetworkConfig, Recipe, RunConfig
from .device import rank
from .files import plain, sha256
from .log import say

SCHEDULES = ("cubic", "he2018", "asymptotic", "constant")
PLUGIN = "plugin of "  # and a file: what its module is called
# What a network trained elsewhere does not tell, of itself and of its images.
READING = ("image_size", "shortcut", "stem", "stride", "key", "bn_eps")
IMAGES = ("dataset", "mean", "std", "resize", "class_order")
# How oneDNN, PyTorch and the loader of libraries say that there is no memory left.
NO_MEMORY = ("could not create a primitive", "not enough memory", "failed to map segment")
PRUNING = [f.name for f in fields(PruningConfig) if f.name not in ("seed", "batch_size")]


class Parser(argparse.ArgumentParser):
    """Its errors are one line, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        """Say it, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def parser(docstring: str) -> argparse.ArgumentParser:
    """An argument parser whose description is a script's docstring, as it stands."""
    kind = argparse.RawDescriptionHelpFormatter
    p = Parser(description=docstring, formatter_class=kind, allow_abbrev=False)
    told = "Python file with criteria or methods of yours; may be given several times"
    p.add_argument("--plugin", type=Path, action="append", default=[], metavar="FILE", help=told)
    return p


def add_flags(p: Any, config: type, *names: str, usual: bool = True, **how: Any) -> None:
    """Flags for the fields of a config, or some of them; one that is not given is None.

    `usual`: whether the help tells the defaults. `how` says more for argparse, by field.
    """
    for own in fields(config):
        told = {**own.metadata, **how.get(own.name, {})}
        if not told or own.name not in (names or [own.name]):
            continue
        told.pop("interval", None)
        kind, default, words = told.pop("type"), own.default, told.pop("help").replace("%", "%%")
        if usual and "default" not in words and default not in (None, ()) and kind is not bool:
            words += f" (default: {default})"
        flags = flag(own.name), *told.pop("flags", ())
        if kind is bool:
            told = {"action": "store_true", "default": None}
        else:
            told["type"] = kind
        told["help"] = words
        p.add_argument(*flags, **told)


def add_run_flags(p: argparse.ArgumentParser) -> None:
    """What to work on, where to put it, on which machine."""
    group = p.add_argument_group("network and data")
    add_flags(group, NetworkConfig)
    add_flags(group, RunConfig, "data")
    add_flags(group, Recipe, "seed")
    add_flags(p.add_argument_group("output"), RunConfig, "save", "force")
    add_machine_flags(p)


def add_reading_flags(p: argparse.ArgumentParser, *more: str) -> None:
    """How to read a network trained elsewhere."""
    add_flags(p.add_argument_group("network trained elsewhere"), NetworkConfig, *READING, *more)


def add_machine_flags(p: argparse.ArgumentParser) -> None:
    """Where and how to compute."""
    add_flags(p.add_argument_group("machine"), RunConfig, "device", "threads", "precision")


def add_training_flags(p: argparse.ArgumentParser, usual: bool = True) -> None:
    """How to train; without `usual` defaults where they follow from a recipe."""
    not_here = {"temperature", "teacher_weight", "recalibrate", "seed"}
    names = [own.name for own in fields(Recipe) if own.name not in not_here]
    add_flags(p.add_argument_group("training"), Recipe, *names, usual=usual)


def add_pruning_flags(p: argparse.ArgumentParser) -> None:
    """How to prune. In a later stage the same flags find the run again."""
    lines = {name: (inspect.getdoc(c) or name).split(" (")[0] for name, c in CRITERIA.items()}
    words = "; ".join(f"{name}: {line}" for name, line in lines.items())
    words += " (default: l1; soft: gate; weight: magnitude)"
    criterion = {"help": words, "choices": [*dict.fromkeys([*CRITERIA, *WEIGHT_CRITERIA])]}
    how = {"method": {"choices": [*METHODS, *ALIASES]}, "criterion": criterion}
    how |= {"schedule": {"choices": SCHEDULES}, "allocation": {"flags": ["--threshold"]}}
    add_flags(p.add_argument_group("pruning"), PruningConfig, *PRUNING, **how)


def pruning_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about pruning."""
    given = {name: getattr(args, name) for name in PRUNING}
    return {name: value for name, value in given.items() if value is not None}


def load_plugins(arguments: list[str]) -> None:
    """Run the files after --plugin: what they add to CRITERIA or METHODS, the flags know then.

    Raises ValueError for what is no Python file, or fails.
    """
    p = Parser(add_help=False, allow_abbrev=False)
    p.add_argument("--plugin", type=Path, action="append", default=[])
    for file in p.parse_known_args(arguments)[0].plugin:
        spec = importlib.util.spec_from_file_location(PLUGIN + file.stem, file)
        if not (spec and file.is_file()):
            raise ValueError(f"--plugin {file}: no such Python file")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        sys.path.append(str(file.parent.resolve()))  # for what it imports
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"--plugin {file}: {told}") from error


def plugins(args: argparse.Namespace, steps: Sequence[PruningConfig]) -> dict[str, list[str]]:
    """What --plugin adds to the identity of a run: hashes of the files, if a step uses them."""
    kinds = [(METHODS[step.method], step.criterion) for step in steps if step.method in METHODS]
    used = [part for kind, name in kinds for part in (kind, kind.criteria.get(name))]
    theirs = any(getattr(one, "__module__", "").startswith(PLUGIN) for one in used)
    return {"plugin": [sha256(file) for file in args.plugin]} if theirs else {}


class Interrupted(BaseException):
    """SIGINT or SIGTERM; what is on disk is whole, and the stage can be resumed."""


def _interrupt(signum: int, _frame: Any) -> None:
    signal.signal(signum, signal.SIG_DFL)  # a second one kills
    raise Interrupted(signum)


def _unraisable(lost: Any) -> None:
    """An interrupt in a callback from which nothing can be raised comes again, after it."""
    if not isinstance(lost.exc_value, Interrupted):
        return sys.__unraisablehook__(lost)
    (signum,) = lost.exc_value.args
    signal.signal(signum, _interrupt)
    threading.Timer(0.05, os.kill, (os.getpid(), signum)).start()


def _run(main: Callable[[argparse.Namespace], dict[str, Any]], args: Any) -> dict[str, Any]:
    """What `main` returns. PyTorch's exporter makes other errors out of an interrupt."""
    try:
        return main(args)
    except Exception as error:
        cause: BaseException | None = error
        while cause and not isinstance(cause, Interrupted):
            cause = cause.__cause__ or cause.__context__
        if cause:
            raise cause from None
        raise


@contextlib.contextmanager
def _all_to_stderr() -> Iterator[None]:
    """What libraries print, those in C++ too, goes to standard error: the other is the result's."""
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has buffered
        os.dup2(own, 1)
        os.close(own)


def _print(line: str) -> None:
    """Print to standard output; where that fails, Python is not to try it again when it exits."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def run_script(
    build_parser: Callable[[], argparse.ArgumentParser],
    main: Callable[[argparse.Namespace], dict[str, Any]],
    summary: Callable[[dict[str, Any]], str],
) -> None:
    """Parse, run, print the result, and exit with the documented code.

    The result is one JSON line or, on a terminal without --json, its `summary` for people.
    """
    for number in range(3):  # a process may be started without; no other file is to take them
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    # None where they were closed.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    code, args = 0, argparse.Namespace()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            load_plugins(sys.argv[1:])
        p = build_parser()
        p.add_argument("--json", action="store_true", help="JSON result on a terminal, too")
        p.add_argument("--debug", action="store_true", help="traceback of an error")
        if "" in sys.argv[1:]:  # of a variable that is not set; as a path it would be this folder
            p.error("an argument is empty")
        args = p.parse_args()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _interrupt)
        sys.unraisablehook = _unraisable
        for_people = sys.stdout.isatty() and not args.json
        with _all_to_stderr():
            result = plain(_run(main, args))
        if rank() == 0:
            _print(summary(result) if for_people else json.dumps(result, allow_nan=False))
    except Interrupted as error:
        code = 128 + error.args[0]
        forced = " without --force" if getattr(args, "force", False) else ""
        trains = f"; if a whole epoch was done, the same command{forced} goes on from there"
        say("interrupted" + (trains if hasattr(args, "epochs") else "; nothing is left half-done"))
    except BrokenPipeError:
        code = 1
    except Exception as error:  # a user gets one line; --debug shows the rest
        code = 2 if isinstance(error, ValueError) else 1
        if "--debug" in sys.argv:
            traceback.print_exc()
        lines = str(error).strip().splitlines()
        detail = lines[0] if lines else type(error).__name__
        if isinstance(error, MemoryError) or any(words in detail for words in NO_MEMORY):
            detail = f"out of memory ({detail}); free some, and call it again"
        elif type(error).__module__ == "builtins" and not isinstance(error, (ValueError, OSError)):
            detail = f"{type(error).__name__}: {detail} (--debug shows where)"
        say(f"{Path(sys.argv[0]).name}: error: {detail}")
    for signum in (signal.SIGINT, signal.SIGTERM):  # while Python ends, they are not for _interrupt
        signal.signal(signum, signal.SIG_DFL)
    if dist.is_initialized() and code == 0:
        dist.destroy_process_group()
    sys.exit(code)


def stage_summary(result: dict[str, Any]) -> str:
    """What stages 1 to 3 tell a person: what, how accurate, how small, where, and what next."""
    stage, folder = result["stage"], shlex.quote(str(Path(result["checkpoint"]).parent))
    lines = [f"{stage}: {result['arch']} {result['depth']} on {result['dataset']}"]
    if result["top1"] is not None:
        before = result.get("top1_before")
        lines.append(f"top-1     {result['top1']:.2f} %")
        lines[-1] += f", {before:.2f} % before" if before is not None else ""
    for name, kind in (("params", "nonzero_params"), ("macs", "effective_macs")):
        count, dense, left = result[name], result[f"dense_{name}"], result[kind]
        lines.append(f"{name:9} {count:,}")
        lines[-1] += f", {dense / count:.2f}x fewer than dense" if dense > count else ""
        lines[-1] += f"; {left:,} not zero" if left < 0.99 * count else ""
    lines.append(f"file      {result['checkpoint']}")
    following = {"pruned": f"finetune.py --refine {folder}"}
    following["baseline"] = f"res50prune.py --model {folder} --ratio 0.5"
    lines.append(f"next      python {following.get(stage, f'export.py {folder}')}")
    return "\n".join(lines)
