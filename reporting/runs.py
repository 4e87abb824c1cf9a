"""Reading run folders: the stages that are finished and sound, and what is not."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measurement.rows import SIZES, TIMED
from models import ARCHS, STAGES
from utils import stages

DENSE = "dense"
FURTHER = "dense further"  # fine-tuned without having been pruned
REPEAT = "res50prune.py --sensitivity --force repeats it"
Drops = dict[str, dict[str, float]]  # of one sensitivity: group -> ratio -> points lost


@dataclass(frozen=True)
class Finished:
    """A finished stage: its folder, result.json, metrics.jsonl and benchmark.json."""

    folder: str
    result: dict[str, Any]
    curve: list[dict[str, Any]]
    speeds: list[dict[str, Any]]

    @property
    def stage(self) -> str:
        return self.result["stage"]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def network(self) -> str:
        """Dataset and network, like "cifar100 resnet50"; and images that are not of 32 pixels."""
        arguments = self.result["arguments"]
        size = arguments["image_size"]
        pixels = "" if size == stages.DEFAULTS["image_size"] else f" {size}px"
        return f"{self.result['dataset']} {stages.network_name(arguments)}{pixels}"

    @property
    def amount(self) -> str:
        """How much was pruned, as its tag says it: "0.6", "macs0.5", "0.3+0.6"; "" for nothing."""
        return "+".join(part.split("-")[1] for part in self._prunings)

    @property
    def series(self) -> str:
        """What else tells runs apart: the way of pruning, of training again; or a control."""
        whole = FURTHER if self.stage == "finetuned" else DENSE
        prunings = ([part[0], *part[2:]] for part in (p.split("-") for p in self._prunings))
        words = ["+".join(map(" ".join, prunings)) or whole]
        arguments = self.result["arguments"]
        if (recipe := arguments.get("recipe") or "default") != "default":
            words.append(recipe)
        words += [word for flag, word in WORDS.items() if arguments.get(flag)]
        words += [FROM[self.stage]] if self.stage in FROM else []
        if arguments.get("budget") == "flops":
            words.append("(equal FLOPs)")
        return " ".join(words)

    @property
    def _prunings(self) -> list[str]:
        return self.result["tag"].split("+") if self.result["tag"] else []

    @property
    def control(self) -> bool:
        """Whether it is there to be beaten."""
        further = self.series.startswith(FURTHER)
        return self.stage == "like" or further or "random" in self.series.split()


WORDS = {"teacher_hash": "taught", "reestimate_bn": "re-estimated"}
FROM = {"like": "from scratch", "scratch": "from the start"}  # the control; pruned in training


def lineage(run: Finished, finished: Iterable[Finished]) -> list[Finished]:
    """The stages whose weights led to a network, in order, as far as they are among `finished`."""
    by_hash = {other.result["sha256"]: other for other in finished}
    chain = [run]
    # One trained like another has the shape of its parent, but none of its weights.
    while chain[0].stage != "like":
        parent = by_hash.get(chain[0].result["arguments"].get("parent"))
        if parent is None or parent in chain:
            break
        chain.insert(0, parent)
    return chain


Check = Callable[[Any], bool]


def _number(low: float, high: float = 1e18) -> Check:
    def check(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return check


def _a(*types: type) -> Check:
    return lambda value: type(value) in types


none, positive = type(None), _number(1e-18)


def _count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 10**6)


# What must be there, and what it must be.
RESULT = {
    **dict.fromkeys(("stage", "dataset", "arch", "sha256"), _a(str)),
    **dict.fromkeys(("params", "nonzero_params", "macs", "effective_macs"), positive),
    **{"depth": _a(int), "seed": _a(int), "tag": _a(str, none)},
    **dict.fromkeys(("widths", "machine", "arguments"), _a(dict)),
}
ARGUMENTS = {
    **{"arch": _a(str), "depth": _a(int), "width": _a(int), "shortcut": _a(str)},
    **{"image_size": _a(int), "epochs": _count},
    **{"recipe": _a(str, none), "parent": _a(str, none)},
}
TOP1 = _number(0, 100)
EPOCH = {
    **{"epoch": _a(int), "top1": TOP1, "flipped": _count, "regrown": _count},
    "overlap": lambda value: value is None or _number(0, 1)(value),
}
TIMING = {
    **dict.fromkeys(("engine", "precision", "sha256", "compared_with"), _a(str)),
    **dict.fromkeys(("images_per_second", "measured_speedup", "latency_speedup"), positive),
    **{"latency_ms": positive, "machine": _a(dict), "remarks": _a(list)},
    "reference": _a(str, none),
}
MACHINE = {"device": _a(str), "name": _a(str)}


def _fits(value: Any, wanted: dict[str, Check]) -> bool:
    """Whether it is a dictionary whose values pass these checks."""
    return isinstance(value, dict) and all(check(value.get(k)) for k, check in wanted.items())


def _sound(result: Any) -> bool:
    if not _fits(result, RESULT) or not _fits(result["arguments"], ARGUMENTS):
        return False
    if result["stage"] != "pruned" and not TOP1(result.get("top1")):
        return False
    if not all(map(positive, result["widths"].values())):
        return False
    tag = result.get("tag", "")  # None says that nothing was pruned, and nothing says too little
    parts = [] if tag is None else tag.split("+")
    known = result["arguments"]["arch"] in ARCHS and result["arguments"]["depth"] in STAGES
    return known and all(re.fullmatch(r"[^\s-]+-[^\s-].*", part) for part in parts)


def sound_timing(row: Any) -> bool:
    """Whether a row of benchmark.json holds what is read here, of any network."""
    figures = (figure.key for figure in (*SIZES, *TIMED))
    return (
        _fits(row, TIMING)
        and _fits(row["machine"], MACHINE)
        and all(row.get(key) is None or _number(0)(row[key]) for key in figures)
    )


def read(roots: Iterable[Path]) -> tuple[list[Finished], dict[str, Drops], list[str]]:
    """What is sound below some folders: finished stages, sensitivities; and lines on what is not.

    Raises FileNotFoundError for a folder that is not there.
    """
    finished, problems, sensitivities, seen = [], [], {}, set()
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        for file in _below(root, "result.json"):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            result = _read(file, dict, "--force makes it again", problems)
            if result is None:
                continue
            if not _sound(result):
                problems.append(f"{file}: damaged, or of an older version; --force makes it again")
                continue
            folder = file.parent.relative_to(root).as_posix()
            epochs = result["arguments"].get("epochs") or 0
            curve = _curve(file.with_name("metrics.jsonl"), problems, epochs)
            timings = file.with_name("benchmark.json")
            speeds = _read(timings, list, "benchmark.py makes it again", problems) or []
            finished.append(Finished(folder, result, curve, speeds))
        for file in _below(root, "sensitivity/*.json"):
            found = _read(file, dict, REPEAT, problems)
            if found and _is_heat(found.get("drops")):
                sensitivities[file.relative_to(root).as_posix()] = found["drops"]
            elif found is not None:
                problems.append(f"{file}: damaged; {REPEAT}")
    return _with_sound_timings(finished, problems), sensitivities, problems


def _below(root: Path, name: str) -> list[Path]:
    """Files of a name below a folder, through links too, which may lead back to where they are."""
    found, seen = [], set()
    for folder, below, _ in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        own = (name for name in below if name[0] != ".")  # links last: a stage has its own name
        below[:] = sorted(own, key=lambda name: (os.path.islink(os.path.join(real, name)), name))
        found += Path(folder).glob(name)
    return sorted(found)


def _is_heat(drops: Any) -> bool:
    """Whether this is group -> ratio -> drop, with the same ratios for every group."""
    rows = list(drops.values()) if isinstance(drops, dict) else []
    try:
        ratios = [float(ratio) for ratio in rows[0]]
    except (IndexError, TypeError, ValueError):
        return False
    return bool(ratios) and all(
        _fits(row, dict.fromkeys(rows[0], _number(-100, 100))) and len(row) == len(ratios)
        for row in rows
    )


def read_json(file: Path, kind: type) -> Any:
    """What a JSON file holds; None if it is not there, damaged, or not of this kind."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(file.read_text())
        return content if isinstance(content, kind) else None


def _read(file: Path, kind: type, remedy: str, problems: list[str]) -> Any:
    """The same, and a note if it is there, but not whole."""
    content = read_json(file, kind)
    if content is None and file.is_file():
        problems.append(f"{file}: damaged; {remedy}")
    return content


def _curve(file: Path, problems: list[str], epochs: int = 0) -> list[dict[str, Any]]:
    """The log of a training that took `epochs` (0: no one knows); empty if it is not whole."""
    try:
        lines = file.read_text().splitlines() if epochs or file.exists() else []
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        rows = [None]
    whole = epochs in (0, len(rows))
    if whole and all(_fits(row, EPOCH) and row["epoch"] == i for i, row in enumerate(rows, 1)):
        return rows
    problems.append(f"{file}: not the whole log of its training; left out")
    return []


def _with_sound_timings(finished: list[Finished], problems: list[str]) -> list[Finished]:
    """Only the timings of a network as it is now, next to a dense network of its kind."""
    dense = {(run.network, run.result["sha256"]) for run in finished if run.series == DENSE}
    checked = []
    for run in finished:
        sound = {}  # of several in one place, by other versions, the latest
        for row in run.speeds:
            if not sound_timing(row):
                problems.append(f"{run.folder}: a damaged timing was left out")
            elif row["sha256"] != run.result["sha256"]:
                problems.append(f"{run.folder}: a timing of another checkpoint was left out")
            elif (run.network, row.get("reference")) not in dense:
                told = f"timed against {row['compared_with']}, not the dense network"
                told = f"{run.folder}: {told}, or by an older version; time it again"
                if told not in problems:
                    problems.append(told)
            else:
                sound[where(row)] = {**row, "where": where(row)}
        checked.append(replace(run, speeds=list(sound.values())))
    return checked


def where(row: dict[str, Any]) -> str:
    """Engine, precision and machine of a timing: "compile bf16 on AMD EPYC 26.2.1, 2 threads"."""
    machine = row["machine"]
    count = machine.get("threads")
    threads = f", {count} thread{'s' * (count != 1)}" if machine["device"] == "cpu" else ""
    name = " ".join(re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b", " ", machine["name"]).split())
    return f"{row['engine']} {row['precision']} on {name}{threads}"


def unfinished(root: Path) -> list[str]:
    """A line for each stage below a folder that was begun and not ended."""
    problems = []
    for file in (*_below(root, "metrics.jsonl"), *_below(root, "resume.pt")):
        if file.with_name("result.json").is_file():
            continue
        epochs = len(_curve(file.with_name("metrics.jsonl"), []))
        line = f"{file.parent.relative_to(root)}: unfinished, {epochs} epochs so far; run it again"
        if line not in problems:
            problems.append(line)
    return problems
