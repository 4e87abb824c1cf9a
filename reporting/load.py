"""From run folders to a study: sound runs, taken together where only their seed differs.

What is damaged is left out by name, and the rest goes on. No folder name is parsed: what a run is
stands in its result.json.
"""

import contextlib
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pruning import METHODS, PruningConfig
from pruning.config import AMOUNTS, special
from utils.config import NetworkConfig

DENSE = "dense"
CONTROLS = {"scratch": "from scratch", "random": "", "longer": "longer"}  # and the words for it
DAMAGED = "missing, damaged or of an older version, left out"
# What a check may stumble over in content from elsewhere.
ODD = (OSError, ValueError, RecursionError, TypeError, AttributeError, LookupError)
TRAINED = ("baseline", "scratch", "like", "finetuned")
MEASURED = (*TRAINED, "imported")
SIZES = ("params", "nonzero_params", "macs", "effective_macs")
TIMES = ("latency_ms", "images_per_second", "latency_speedup", "measured_speedup")
ABSOLUTE = ("latency_ms", "images_per_second")
# If a speedup is uncertain, so are these figures.
WITH_SPEEDUP = {
    "latency_speedup": ("latency_speedup", "latency_ms"),
    "measured_speedup": ("measured_speedup", "images_per_second", "speedup_ratio"),
}
OPTIONAL = ("speedup_ratio", "file_bytes", "compressed_bytes", "peak_memory_bytes")


class Identity(NamedTuple):
    """What runs have in common that differ only in their seed."""

    network: str  # dataset and network, and what else tells its images from the default ones
    method: str  # the last step's; "dense" if nothing was pruned
    series: str  # the method, and what tells it from others but for how much is pruned
    amount: str  # pruned: "60 %", "30 % + 60 %", "macs 0.5", "pattern 2:4"; "" for nothing
    steps: tuple[PruningConfig, ...]  # without their seeds
    control: str | None
    training: tuple[str, ...]  # where it is not the default one
    epochs: tuple[int, ...]  # of the trainings that led to it; in a Run, of that training alone


@dataclass(eq=False)
class Run:
    """A finished stage: what its result.json, metrics.jsonl and benchmark.json hold."""

    folder: str
    identity: Identity
    result: dict[str, Any]  # and the timing that the study compares
    curve: list[dict[str, Any]]
    rows: list[dict[str, Any]]  # of benchmark.json
    timings: dict[tuple[str, str], dict] = field(default_factory=dict)  # by machine and engine

    def __getitem__(self, key: str) -> Any:
        """Of the result."""
        return self.result[key]


class Cell(NamedTuple):
    """The same thing done with several seeds."""

    identity: Identity
    runs: tuple[Run, ...]

    def values(self, key: str) -> list[float]:
        """Of a figure in the results or in the timings, as far as it is known."""
        return [run[key] for run in self.runs if run.result.get(key) is not None]

    def mean(self, key: str) -> float | None:
        """Over the seeds; None if unknown."""
        return statistics.mean(values) if (values := self.values(key)) else None

    def spread(self, key: str) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        return statistics.stdev(values) if len(values := self.values(key)) > 1 else None

    def minus(self, others: Sequence[Run]) -> list[float]:
        """Differences of top-1 to other runs, seed by seed, of the seeds that both have."""
        theirs = {run["seed"]: run["top1"] for run in others if run["top1"] is not None}
        return [run["top1"] - theirs[run["seed"]] for run in self.tested() if run["seed"] in theirs]

    def tested(self) -> list[Run]:
        """The runs whose accuracy was measured."""
        return [run for run in self.runs if run["top1"] is not None]


class Study(NamedTuple):
    """All that was found; the machine and engine of its times; lines on what is not used."""

    runs: list[Run]
    cells: dict[str, list[Cell]]  # by network
    machine: str | None
    engine: str | None
    left_out: list[str]

    def dense(self, network: str) -> Cell | None:
        """The dense network; of several kinds, the one with the most seeds, then epochs."""
        kinds = [cell for cell in self.cells[network] if cell.identity.series == DENSE]
        return max(kinds, key=lambda cell: (len(cell.runs), cell.identity.epochs), default=None)

    def to_dense(self, cell: Cell) -> list[float]:
        """Top-1 minus that of the dense network which each run came from.

        Without one, of the dense network with its seed. Of several kinds of those it is that with
        the most seeds in common, then with the nearest epochs.
        """
        dense = [c for c in self.cells[cell.identity.network] if c.identity.series == DENSE]
        if not dense or cell in dense:
            return []

        def fits(other: Cell) -> tuple[int, int]:
            epochs = sum(other.identity.epochs) - sum(cell.identity.epochs)
            return len(cell.minus(other.runs)), -abs(epochs)

        by_seed, found = {run["seed"]: run for run in max(dense, key=fits).runs}, []
        for run in cell.tested():
            root = lineage(run, self.runs)[0]
            if root["stage"] in ("baseline", "imported"):
                found.append(run["top1"] - root["top1"])
            elif root["stage"] in ("scratch", "like") and run["seed"] in by_seed:
                found.append(run["top1"] - by_seed[run["seed"]]["top1"])
        return found

    def to_control(self, cell: Cell, control: str) -> list[float]:
        """Top-1 minus that of a control of the same pruning, seed by seed.

        Of several, the one whose epochs are nearest to its own.
        """
        pruned = cell.identity
        if pruned.control or not pruned.steps:
            return []
        random = tuple(replace(step, criterion="random") for step in pruned.steps)
        steps = {"random": random, "scratch": pruned.steps, "longer": ()}[control]
        cells = [c for c in self.cells[pruned.network] if c.identity.control == control]
        cells = [c for c in cells if c.identity.steps == steps]
        if control == "random":
            cells = [c for c in cells if c.identity.training == pruned.training]
        cells.sort(key=lambda other: abs(sum(other.identity.epochs) - sum(pruned.epochs)))
        return cell.minus(cells[0].runs) if cells else []


def load(roots: Sequence[Path], machine: str | None = None) -> Study:
    """Read all run folders below some folders, with the timings on one machine.

    `machine` is a part of its name; of several, or if there is none, the one where most was timed
    counts. Raises FileNotFoundError if there is nothing, ValueError for an unknown machine.
    """
    left_out: list[str] = []
    runs = [run for folder, names in _folders(roots) for run in _runs(folder, names, left_out)]
    places = ", ".join(map(str, roots))
    if not runs:
        raise FileNotFoundError("; ".join([f"{places}: no finished stage below", *left_out[:1]]))
    dense = {(run.identity.network, run["sha256"]) for run in runs if not run.identity.steps}
    parents = {run["arguments"]["parent"] for run in runs}
    for run in runs:
        root, last = lineage(run, runs)[0], run["sha256"] not in parents
        if run["stage"] == "pruned":  # on however many images it was chosen
            run.identity = run.identity._replace(network=root.identity.network)
        run.timings = _timings(run, dense, left_out)
        if last and root["stage"] in ("pruned", "finetuned"):
            left_out.append(f"{run.folder}: the dense network that it came from is not here")
        elif last and run["stage"] == "pruned" and not run.timings:
            left_out.append(f"{run.folder}: pruned, but not fine-tuned")
    place = _place(runs, machine or "")
    for run in runs:
        run.result = {**run.timings.get(place, {}), **run.result}
    rows = [
        run
        for run in runs
        if run["stage"] in MEASURED or (run.timings and run["sha256"] not in parents)
    ]
    if not rows:
        raise FileNotFoundError("; ".join([f"{places}: no trained network below", *left_out[:1]]))
    return Study(runs, _cells(rows, runs, left_out), *place, left_out)


def _timings(
    run: Run, dense: Collection[tuple[str, str]], left_out: list[str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """What is certain of the sound rows of a run, by machine and engine; adds a line on the rest.

    `dense` are the networks and hashes of what they may be compared with.
    """
    sound = [row for row in run.rows if (run.identity.network, row["reference"]) in dense]
    sound = [row for row in sound if row["sha256"] == run["sha256"]]
    # Of a pruning that is still to be done the dense network was timed, with more MACs.
    sound = [row for row in sound if row.get("effective_macs", 0) < 1.01 * run["effective_macs"]]
    if len(sound) < len(run.rows):
        why = "not of this checkpoint, or timed beside a network that is not dense or not here"
        left_out.append(f"{run.folder}/benchmark.json: {why}")
    timings: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sound:  # the latest certain value of each figure counts
        place = _machine_and_engine(row)
        timing = timings.setdefault(place, dict.fromkeys([*TIMES, "speedup_ratio"]))
        timing |= {name: value for name, value in _certain(row).items() if value is not None}
    if busy := [place for place, row in timings.items() if None in map(row.get, WITH_SPEEDUP)]:
        engines = ", ".join(dict.fromkeys(engine for _, engine in busy))
        why = f"{engines}: timed on a busy machine; time it again"
        left_out.append(f"{run.folder}/benchmark.json: {why}")
    return timings


def _certain(row: dict[str, Any]) -> dict[str, Any]:
    """A timing, with None for what a busy or drifting machine made uncertain."""
    blank = [name for speedup in row.get("uncertain", ()) for name in WITH_SPEEDUP[speedup]]
    return row | dict.fromkeys([*blank, *(ABSOLUTE if row.get("drifted") else ())])


def _place(runs: Sequence[Run], part: str) -> tuple[str | None, str | None]:
    """The machine, which has a part in its name, and the engine there, where most was timed.

    Of several, the fastest.
    """
    timings = [timing for run in runs for timing in run.timings.items()]
    timings = [timing for timing in timings if timing[1]["measured_speedup"]] or timings
    # Not int8, beside an accuracy that was measured in another precision.
    rates = [(r["images_per_second"] or 0, at) for at, r in timings if r["precision"] != "int8"]
    places = [place for _, place in sorted(rates, reverse=True)]
    matches = [place for place in places if part.casefold() in place[0].casefold()]
    if part and not matches:
        machines = "; ".join(dict.fromkeys(machine for machine, _ in places)) or "none"
        raise ValueError(f"--machine {part}: not among those timed on: {machines}")
    if not matches:
        return None, None
    machine = statistics.mode(machine for machine, _ in matches)
    return statistics.mode(place for place in matches if place[0] == machine)


def _folders(roots: Sequence[Path]) -> Collection[tuple[Path, list[str]]]:
    """All folders below, once each and through links too, with the names of what is in them."""
    folders: dict[str, tuple[Path, list[str]]] = {}
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: {'not a' if root.exists() else 'no such'} folder")
        for folder, below, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)  # a link may lead back
            below[:] = sorted(n for n in below if n[0] != "." and real not in folders)
            folders.setdefault(real, (Path(folder), names + below))
    return folders.values()


def _runs(folder: Path, names: list[str], left_out: list[str]) -> Iterator[Run]:
    """The finished stage in a folder, if there is one and it is sound."""
    if "result.json" not in names:
        if "metrics.jsonl" in names or "resume.pt" in names:
            left_out.append(f"{folder}: unfinished; the same stage command goes on with it")
    elif result := _read(folder / "result.json", _is_result, left_out):
        identity, curve, rows = _identity(result), [], []
        if result["stage"] in TRAINED:
            log = folder / "metrics.jsonl"
            curve = _read(log, lambda rows: _is_log(rows, identity.epochs), left_out)
        if "benchmark.json" in names:
            file = folder / "benchmark.json"
            told = _read(file, lambda rows: isinstance(rows, list), left_out)
            rows = list(filter(_is_timing, told))
            if bad := len(told) - len(rows):
                left_out.append(f"{file}: {bad} of {len(told)} timings {DAMAGED}; time it again")
        yield Run(str(folder), identity, result, curve, rows)


def _read(file: Path, sound: Callable[[Any], Any], left_out: list[str]) -> Any:
    """What a JSON file holds, of .jsonl a list; [] and a line if that is not `sound`."""
    with contextlib.suppress(*ODD):
        text = file.read_text("utf-8") if file.is_file() else ""  # no end of a pipe is waited for
        lines = file.suffix == ".jsonl"
        content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        # Neither NaN nor half a character, which cannot be printed.
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
        if sound(content):
            return content
    left_out.append(f"{file}: {DAMAGED}")
    return []


def _identity(result: dict[str, Any]) -> Identity:
    stage, arguments, control = result["stage"], result["arguments"], result["control"]
    config = NetworkConfig(**{**arguments["network"], "mean": None, "std": None})
    network = [Path(config.folder).name if config.folder else config.dataset, config.name]
    network += [f"{config.image_size}px"] * (config.image_size != NetworkConfig.image_size)
    network += [f"{config.train_images} images"] * bool(config.train_images)
    recipe = arguments["recipe"] if stage in TRAINED else {"name": "default"}
    remarks = {recipe["name"]: recipe["name"] != "default", "taught": recipe.get("teacher")}
    remarks |= {"recalibrated": recipe.get("recalibrate"), "during training": stage == "scratch"}
    remarks |= {"not fine-tuned": stage == "pruned"}
    training = tuple(remark for remark, holds in remarks.items() if holds)
    steps = tuple(PruningConfig.from_dict({**step, "seed": 0}) for step in result["pruning"])
    once = stage in ("scratch", "like")  # "during training" says it, and a control has no ramp
    kinds = [replace(step, gradual=step.gradual and not once) for step in steps]
    methods = " + ".join(" ".join([step.method, *special(step)]) for step in kinds) or DENSE
    series = " ".join(filter(None, [methods, *training, CONTROLS.get(control)]))
    names = " ".join(network), steps[-1].method if steps else DENSE, series
    amount = " + ".join(map(_amount, steps))
    epochs = (recipe["epochs"],) if stage in TRAINED else ()
    return Identity(*names, amount, steps, control, training, epochs)


def _amount(step: PruningConfig) -> str:
    if step.ratio is not None:
        ratios = step.ratio if isinstance(step.ratio, tuple) else (step.ratio,)
        return "/".join(f"{100 * ratio:g}" for ratio in ratios) + " %"
    targets = {name.removeprefix("target_"): getattr(step, name) for name in AMOUNTS}
    return ", ".join(f"{name} {value}" for name, value in targets.items() if value)


def _machine_and_engine(row: dict[str, Any]) -> tuple[str, str]:
    """Of a timing: ("AMD EPYC 26.2.1, 2 threads", "compile bf16")."""
    machine, threads = row["machine"]["name"], row["machine"].get("threads")
    machine += f", {threads} threads" if threads else ""
    return machine, f"{row['engine']} {row['precision']}"


def _is_result(result: Any) -> bool:
    identity, parent = _identity(result), result["arguments"]["parent"]
    hash((identity, parent))  # an error for what cannot be
    sizes = [result[key] for key in SIZES]
    top1 = result["top1"]
    if result["stage"] == "pruned" and top1 is None:  # --no-eval
        top1 = 0
    numbers = [result["seed"], *identity.epochs, top1, *sizes, *result["widths"].values()]
    texts = [result["sha256"], result["machine"]["name"], parent or ""]
    known = identity.control in (None, *CONTROLS) and result["stage"] in (*MEASURED, "pruned")
    return known and _plain(texts, numbers) and all(sizes) and top1 <= 100


def _is_log(rows: Any, epochs: tuple[int, ...]) -> bool:
    numbers = [value for row in rows for value in (row.get("top1", 0), row.get("flipped", 0))]
    counted = all(row["epoch"] == number for number, row in enumerate(rows, 1))
    return counted and (len(rows),) == epochs and _plain([], numbers)


def _is_timing(row: Any) -> bool:
    with contextlib.suppress(*ODD):
        texts = [row[key] for key in ("engine", "precision", "sha256", "reference")]
        texts += [row["machine"]["name"], *row["remarks"]]
        numbers = [row[key] for key in TIMES]
        numbers += [row[key] for key in OPTIONAL if row.get(key) is not None]
        numbers.append(row.get("effective_macs", 0))
        known = set(row.get("uncertain", ())) <= WITH_SPEEDUP.keys()
        # Of an earlier version, which told only that some figure is uncertain.
        return known and not row.get("busy") and _plain(texts, numbers)
    return False


def _plain(texts: Sequence[Any], numbers: Sequence[Any]) -> bool:
    counts = (type(value) in (int, float) and 0 <= value < 1e18 for value in numbers)
    return all(isinstance(value, str) for value in texts) and all(counts)


def lineage(run: Run, runs: Sequence[Run]) -> list[Run]:
    """The stages whose weights led to a network, in order, as far as they are here."""
    parent = run["arguments"]["parent"]
    # A network trained like another has its shape, but none of its weights.
    if parent is None or run["stage"] in ("like", "imported"):
        return [run]
    others = [other for other in runs if other is not run]  # foreign files may form a circle
    for other in others:
        same = all(
            other["arguments"].get(k) == run["arguments"].get(k) for k in ("parent", "network")
        )
        if other["sha256"] == parent or (same and other["stage"] == "imported"):
            return [*lineage(other, others), run]
    return [run]


def _cells(rows: Sequence[Run], runs: Sequence[Run], left_out: list[str]) -> dict[str, list[Cell]]:
    """Those of all runs that have a row, grouped, by network, in the order of the tables."""
    grouped: dict[Identity, dict[int, Run]] = defaultdict(dict)
    for run in rows:
        epochs = tuple(n for stage in lineage(run, runs) for n in stage.identity.epochs)
        seeds = grouped[run.identity._replace(epochs=epochs)]
        first = seeds.setdefault(run["seed"], run)
        if first is not run:
            left_out.append(f"{run.folder}: the same cell and seed as {first.folder}")
    cells = [Cell(key, tuple(seeds[s] for s in sorted(seeds))) for key, seeds in grouped.items()]
    cells.sort(key=lambda cell: (cell.identity.series, -cell.mean("effective_macs")))
    methods = [DENSE, *METHODS, *(cell.identity.method for cell in cells)]
    cells.sort(key=lambda cell: (cell.identity.network, methods.index(cell.identity.method)))
    return {name: list(group) for name, group in groupby(cells, lambda cell: cell.identity.network)}
