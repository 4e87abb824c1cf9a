"""From run folders to a study: sound runs, taken together where only their seed differs.

What is damaged is left out by name, and the rest goes on. No folder name is parsed: what a run is
stands in its result.json.
"""

import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from pruning import METHODS, PruningConfig
from pruning.config import AMOUNTS, special
from utils.config import NetworkConfig

DENSE = "dense"
CONTROLS = {"scratch": "from scratch", "random": "", "longer": "longer"}  # and the words for it
TRAINED = ("baseline", "scratch", "like", "finetuned")
SIZES = ("params", "nonzero_params", "macs", "effective_macs")
TIMES = ("latency_ms", "images_per_second", "latency_speedup", "measured_speedup")
OPTIONAL = ("speedup_ratio", "file_bytes", "compressed_bytes", "peak_memory_bytes")


class Identity(NamedTuple):
    """What runs have in common that differ only in their seed."""

    network: str
    steps: tuple[PruningConfig, ...]  # without their seeds
    control: str | None
    how: tuple[str, ...]  # it was trained, where that is not the default
    epochs: int  # of all trainings that led to it

    @property
    def method(self) -> str:
        """The last step's; "dense" if nothing was pruned."""
        return self.steps[-1].method if self.steps else DENSE

    @property
    def series(self) -> str:
        """The method, and what tells it from others but for how much is pruned."""
        steps = (" ".join([step.method, *special(step)]) for step in self.steps)
        words = [" + ".join(steps) or DENSE, *self.how, CONTROLS.get(self.control)]
        return " ".join(filter(None, words))

    @property
    def amount(self) -> str:
        """How much is pruned: "60 %", "30 % + 60 %", "macs 0.5", "pattern 2:4"; "" for nothing."""
        return " + ".join(map(_amount, self.steps))


def _amount(step: PruningConfig) -> str:
    if step.ratio is not None:
        ratios = step.ratio if isinstance(step.ratio, tuple) else (step.ratio,)
        return "/".join(f"{100 * ratio:g}" for ratio in ratios) + " %"
    told = {name.removeprefix("target_"): getattr(step, name) for name in AMOUNTS}
    return ", ".join(f"{name} {value}" for name, value in told.items() if value)


@dataclass(frozen=True)
class Run:
    """A finished stage: what its result.json, metrics.jsonl and benchmark.json hold.

    The timings are those on the machine of the report; `result` has the one in its engine, too.
    """

    folder: str
    network: str  # dataset and network, and what else tells its images from the usual ones
    steps: tuple[PruningConfig, ...]
    result: dict[str, Any]
    curve: list[dict[str, Any]]
    timings: list[dict[str, Any]]

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
        theirs = {run["seed"]: run["top1"] for run in others}
        return [run["top1"] - theirs[run["seed"]] for run in self.runs if run["seed"] in theirs]


class Study(NamedTuple):
    """All that was found; the machine and engine of its times; lines on what is not used."""

    runs: list[Run]
    cells: dict[str, list[Cell]]  # by network
    machine: str | None
    engine: str | None
    left_out: list[str]

    def dense(self, network: str) -> Cell | None:
        """The dense network; of several kinds, the one with the most seeds."""
        found = [cell for cell in self.cells[network] if cell.identity.series == DENSE]
        return max(found, key=lambda cell: len(cell.runs), default=None)

    def to_dense(self, cell: Cell) -> list[float]:
        """Top-1 minus that of the dense network which each run came from, or has its seed."""
        dense = self.dense(cell.identity.network)
        if not dense or cell.identity.series == DENSE:
            return []
        roots = [lineage(run, self.runs)[0] for run in cell.runs]
        return cell.minus([*dense.runs, *(run for run in roots if run["stage"] == "baseline")])

    def to_control(self, cell: Cell, control: str) -> list[float]:
        """Top-1 minus that of a control of the same pruning, seed by seed.

        Of several, the one whose epochs are nearest to its own.
        """
        own = cell.identity
        if own.control or not own.steps:
            return []
        random = tuple(replace(step, criterion="random") for step in own.steps)
        wanted = {"random": random, "scratch": own.steps, "longer": ()}[control], control
        found = [cell for cell in self.cells[own.network] if cell.identity[1:3] == wanted]
        found = [c for c in found if control != "random" or c.identity.how == own.how]
        found.sort(key=lambda other: abs(other.identity.epochs - own.epochs))
        return cell.minus(found[0].runs) if found else []


def load(roots: Sequence[Path], machine: str | None = None) -> Study:
    """Read all run folders below some folders, with the timings on one machine.

    `machine` is a part of its name; of several, or if there is none, the one where most was timed
    counts. Raises FileNotFoundError if there is nothing, ValueError for an unknown machine.
    """
    runs, left_out = [], []
    for folder, names in _folders(roots):
        if "result.json" in names:
            runs += _run(folder, names, left_out)
        elif names & {"metrics.jsonl", "resume.pt"}:
            left_out.append(f"{folder}: unfinished; the same stage command goes on with it")
    if not runs:
        told = "".join(f" ({line})" for line in left_out[:1])
        raise FileNotFoundError(f"{', '.join(map(str, roots))}: no finished stage below{told}")
    dense = {(run.network, run["sha256"]) for run in runs if not run.steps}
    parents = {run["arguments"]["parent"] for run in runs}
    for run in runs:
        known = [row for row in run.timings if (run.network, row["reference"]) in dense]
        known = [row for row in known if row["sha256"] == run["sha256"]]
        if len(known) < len(run.timings):
            left_out.append(f"{run.folder}/benchmark.json: not of this and a dense checkpoint")
        run.timings[:] = known
        if run["stage"] == "pruned" and run["sha256"] not in parents:
            left_out.append(f"{run.folder}: pruned, but not fine-tuned")
    place, engine = _place([row for run in runs for row in run.timings], machine)
    for run in runs:  # of several timings in one engine, by other versions, the latest
        here = {_engine(row): row for row in run.timings if _machine(row) == place}
        run.timings[:] = here.values()
        run.result.update({**here.get(engine, {}), **run.result})
    return Study(runs, _cells(runs, left_out), place, engine, left_out)


def _folders(roots: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """All folders below, once each and through links too, with the names of what is in them."""
    seen = set()
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        for folder, below, names in os.walk(root, followlinks=True):
            below[:] = sorted(name for name in below if name[0] != ".")
            if (real := os.path.realpath(folder)) in seen:  # a link may lead back
                below.clear()
            else:
                yield Path(folder), set(names)
            seen.add(real)


def _read(file: Path, sound: Callable[[Any], Any], left_out: list[str]) -> Any:
    """What a JSON file holds, of .jsonl a list; [] and a line if that is not `sound`."""
    try:
        text = file.read_text("utf-8") if file.is_file() else ""  # no end of a pipe is waited for
        lines = file.suffix == ".jsonl"
        content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
        # Neither NaN nor half a character, which cannot be printed.
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
        if sound(content):
            return content
    except (OSError, ValueError, RecursionError, TypeError, AttributeError, LookupError):
        pass  # `sound` may stumble over what is not
    left_out.append(f"{file}: damaged or of an older version, left out")
    return []


def _run(folder: Path, names: set[str], left_out: list[str]) -> list[Run]:
    """The stage in a folder; none, and a line, if it is not sound."""
    result = _read(folder / "result.json", _is_result, left_out)
    if not result:
        return []
    log, rows = folder / "metrics.jsonl", folder / "benchmark.json"
    curve = _read(log, partial(_is_log, result), left_out) if result["stage"] in TRAINED else []
    timings = _read(rows, _are_timings, left_out) if rows.name in names else []
    return [Run(str(folder), _network(result), _steps(result), result, curve, timings)]


def _network(result: dict[str, Any]) -> str:
    config = NetworkConfig(**{**result["arguments"]["network"], "mean": None, "std": None})
    words = [Path(config.folder).name if config.folder else config.dataset, config.name]
    words += [f"{config.image_size}px"] * (config.image_size != NetworkConfig.image_size)
    return " ".join(words + [f"{config.train_images} images"] * bool(config.train_images))


def _steps(result: dict[str, Any]) -> tuple[PruningConfig, ...]:
    """Without their seeds."""
    return tuple(PruningConfig.from_dict({**step, "seed": 0}) for step in result["pruning"])


def _plain(texts: Sequence[Any], numbers: Sequence[Any]) -> bool:
    counts = (type(value) in (int, float) and 0 <= value < 1e18 for value in numbers)
    return all(isinstance(value, str) for value in texts) and all(counts)


def _is_result(result: Any) -> bool:
    trained, parent = result["stage"] in TRAINED, result["arguments"]["parent"]
    recipe = result["arguments"]["recipe"] if trained else {"name": "", "epochs": 0}
    own = Identity(_network(result), _steps(result), result["control"], (recipe["name"],), 0)
    hash((own, own.series, parent))  # an error for what cannot be
    texts = [result["sha256"], result["machine"]["name"], recipe["name"], parent or ""]
    numbers = [result["seed"], recipe["epochs"], *result["widths"].values()]
    numbers += [result["top1"]] * trained + [result[key] for key in SIZES]
    known = own.control in (None, *CONTROLS) and (trained or result["stage"] == "pruned")
    known &= _plain(texts, numbers) and all(result[key] for key in SIZES)
    return known and (not trained or result["top1"] <= 100)


def _is_log(result: dict[str, Any], rows: Any) -> bool:
    epochs = range(1, result["arguments"]["recipe"]["epochs"] + 1)
    numbers = [value for row in rows for value in (row["top1"], row.get("flipped", 0))]
    return [row["epoch"] for row in rows] == list(epochs) and _plain([], numbers)


def _are_timings(rows: Any) -> bool:
    texts = [row[key] for row in rows for key in ("engine", "precision", "sha256", "reference")]
    texts += [text for row in rows for text in (row["machine"]["name"], *row["remarks"])]
    numbers = [row[key] for row in rows for key in TIMES]
    numbers += [row[key] for row in rows for key in OPTIONAL if row.get(key) is not None]
    return isinstance(rows, list) and _plain(texts, numbers)


def _engine(row: dict[str, Any]) -> str:
    return f"{row['engine']} {row['precision']}"


def _machine(row: dict[str, Any]) -> str:
    """Where a network was timed: "AMD EPYC 26.2.1, 2 threads"."""
    threads = row["machine"].get("threads")
    return row["machine"]["name"] + (f", {threads} threads" if threads else "")


def _place(rows: list[dict[str, Any]], part: str | None) -> tuple[str | None, str | None]:
    """The machine and the engine where most was timed; of such engines, the fastest."""
    known = Counter(map(_machine, rows))
    machines = [name for name in known if (part or "").casefold() in name.casefold()]
    if part and not machines:
        raise ValueError(f"--machine {part}: not among those timed on: {'; '.join(known)}")
    machine = max(machines, key=known.get, default=None)
    here = sorted(rows, key=lambda row: -row["images_per_second"])  # of equals, the first counts
    engines = Counter(_engine(row) for row in here if _machine(row) == machine)
    return machine, max(engines, key=engines.get, default=None)


def lineage(run: Run, runs: Sequence[Run]) -> list[Run]:
    """The stages whose weights led to a network, in order, as far as they are here."""
    by_hash = {other["sha256"]: other for other in runs}
    chain = [run]
    for _ in runs:  # a network trained like another has its shape, but none of its weights
        parent = by_hash.get(chain[0]["arguments"]["parent"])
        if parent and chain[0]["stage"] != "like":
            chain.insert(0, parent)
    return chain


def _cells(runs: Sequence[Run], left_out: list[str]) -> dict[str, list[Cell]]:
    """Runs that were trained, grouped, by network, in the order of the tables."""
    grouped: dict[Identity, dict[int, Run]] = {}
    for run in (run for run in runs if run["stage"] in TRAINED):
        recipe = run["arguments"]["recipe"]
        words = {recipe["name"]: recipe["name"] != "default", "taught": recipe.get("teacher")}
        words["recalibrated"] = recipe.get("recalibrate")
        words["from the start"] = run["stage"] == "scratch"
        how = tuple(word for word, holds in words.items() if holds)
        trained = [stage for stage in lineage(run, runs) if stage["stage"] in TRAINED]
        epochs = sum(stage["arguments"]["recipe"]["epochs"] for stage in trained)
        key = Identity(run.network, run.steps, run["control"], how, epochs)
        first = grouped.setdefault(key, {}).setdefault(run["seed"], run)
        if first is not run:
            left_out.append(f"{run.folder}: the same cell and seed as {first.folder}")
    cells = [Cell(key, tuple(own[s] for s in sorted(own))) for key, own in grouped.items()]
    cells.sort(key=lambda cell: (cell.identity.series, -cell.mean("effective_macs")))
    methods = [DENSE, *METHODS, *(cell.identity.method for cell in cells)]
    cells.sort(key=lambda cell: (cell.identity.network, methods.index(cell.identity.method)))
    return {name: list(own) for name, own in groupby(cells, lambda cell: cell.identity.network)}
