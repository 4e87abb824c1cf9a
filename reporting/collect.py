"""Reading run folders: what is there, what is missing, and which runs are seeds of one cell."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import stages

DENSE = "dense"
# The order in which ways of pruning are listed; variants follow the way that they vary.
METHODS = (DENSE, "l1", "soft", "weight")


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
        """Dataset and network, like "cifar100 resnet50"."""
        return f"{self.result['dataset']} {stages.network_name(self.result['arguments'])}"

    @property
    def amount(self) -> str:
        """How much was pruned, as the tag of the run says it: "0.6", "macs0.5"; "" for none."""
        return self.result["tag"].split("-")[1] if self.result.get("tag") else ""

    @property
    def series(self) -> str:
        """What else tells runs apart: the way of pruning, of training again; or a control."""
        if not self.result.get("tag"):
            return DENSE
        method, _, *variant = self.result["tag"].split("-")
        words, arguments = [method, *variant], self.result["arguments"]
        if arguments.get("recipe", "default") != "default":
            words.append(arguments["recipe"])
        words += [w for flag, w in WORDS.items() if arguments.get(flag)]
        if self.stage in ("like", "scratch"):
            words.append("from scratch")
        if arguments.get("budget") == "flops":
            words.append("(equal FLOPs)")
        return " ".join(words)

    @property
    def control(self) -> bool:
        """Whether it is there to be beaten."""
        return self.stage == "like" or "random" in self.series.split()


WORDS = {"teacher_hash": "taught", "reestimate_bn": "bn"}


@dataclass(frozen=True)
class Cell:
    """The same thing done with several seeds."""

    runs: tuple[Finished, ...]

    @property
    def first(self) -> Finished:
        return self.runs[0]

    @property
    def label(self) -> str:
        return f"{self.first.series} {self.first.amount}".strip()

    @property
    def seeds(self) -> set[int]:
        return {run.seed for run in self.runs}

    def mean(self, key: str, engine: str | None = None) -> float | None:
        """Of a figure in the results or, with an `engine`, in the benchmark; None if unknown."""
        values = self._values(key, engine)
        return statistics.mean(values) if values else None

    def spread(self, key: str) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        values = self._values(key, None)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, key: str, engine: str | None) -> list[float]:
        if engine is None:
            found = [run.result.get(key) for run in self.runs]
        else:
            found = [r.get(key) for run in self.runs for r in run.speeds if r["where"] == engine]
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Study:
    """All that was found: networks as cells, the stages behind them, and what is wrong."""

    cells: list[Cell]
    finished: list[Finished]
    problems: list[str]
    sensitivities: dict[str, dict[str, dict[str, float]]]

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(cell.first.network for cell in self.cells))

    def of(self, network: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.first.network == network]

    def dense(self, network: str) -> Cell | None:
        return next((c for c in self.of(network) if c.first.series == DENSE), None)

    def engine(self) -> str | None:
        """The engine, type and device that most cells were measured in; of those, the fastest."""
        rates: dict[str, list[float]] = {}
        for cell in self.cells:
            for row in cell.first.speeds:
                rates.setdefault(row["where"], []).append(row["images_per_second"])
        return max(rates, key=lambda name: (len(rates[name]), max(rates[name])), default=None)

    def lineage(self, run: Finished) -> list[Finished]:
        """The stages that led to a network, the dense one first, as far as they are here."""
        by_hash = {other.result.get("sha256"): other for other in self.finished}
        chain = [run]
        while parent := by_hash.get(chain[0].result["arguments"].get("parent")):
            chain.insert(0, parent)
        return chain


def collect(roots: Iterable[Path]) -> Study:
    """Read all run folders below some folders. Raises FileNotFoundError if there are none."""
    finished, problems, sensitivities = [], [], {}
    for root in roots:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        for file in sorted(root.rglob("result.json")):
            folder = file.parent.relative_to(root).as_posix()
            try:
                result = json.loads(file.read_text())
                assert {"stage", "arguments", "seed", "top1", "macs"} <= result.keys()
            except (ValueError, OSError, AttributeError, AssertionError):
                problems.append(f"{folder}: result.json is damaged; run the stage again")
                continue
            curve = _lines(file.with_name("metrics.jsonl"))
            speeds = _lines(file.with_name("benchmark.json"))
            speeds = [{**row, "where": _where(row)} for row in speeds]
            finished.append(Finished(folder, result, curve, speeds))
        problems += _unfinished(root)
        for file in sorted(root.rglob("sensitivity/*.json")):
            sensitivities[file.relative_to(root).as_posix()] = json.loads(file.read_text())["drops"]
    if not finished:
        raise FileNotFoundError(f"{', '.join(map(str, roots))}: no finished stage below")
    cells = _cells([run for run in finished if run.stage != "pruned"], problems)
    study = Study(cells, finished, problems, sensitivities)
    problems += _missing(study)
    return study


def _where(row: dict[str, Any]) -> str:
    return f"{row['engine']} {row['precision']} on {row['machine']['device']}"


def _lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, or of a JSON file with a list; [] if it is not there."""
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return rows[0] if rows and isinstance(rows[0], list) else rows


def _unfinished(root: Path) -> list[str]:
    problems = []
    for file in sorted({*root.rglob("metrics.jsonl"), *root.rglob("resume.pt")}):
        if file.with_name("result.json").is_file():
            continue
        epochs = len(_lines(file.with_name("metrics.jsonl")))
        line = f"{file.parent.relative_to(root)}: unfinished, {epochs} epochs so far; run it again"
        if line not in problems:
            problems.append(line)
    return problems


def _cells(runs: Sequence[Finished], problems: list[str]) -> list[Cell]:
    """Group runs that differ in their seed only, in the order of the tables."""
    grouped: dict[tuple, dict[int, Finished]] = {}
    for run in runs:
        seeds = grouped.setdefault((run.network, run.series, run.amount), {})
        if run.seed in seeds:
            problems.append(f"{run.folder}: the same cell and seed as {seeds[run.seed].folder}")
        else:
            seeds[run.seed] = run

    def order(key: tuple[str, str, str]) -> tuple:
        network, series, amount = key
        method = series.split()[0]
        rank = METHODS.index(method) if method in METHODS else len(METHODS)
        return network, rank, series, amount

    return [
        Cell(tuple(run for _, run in sorted(grouped[key].items())))
        for key in sorted(grouped, key=order)
    ]


def _missing(study: Study) -> list[str]:
    """Cells that lack seeds, epochs or timings that others have; networks never fine-tuned."""
    problems = []
    parents = {run.result["arguments"].get("parent") for run in study.finished}
    for run in study.finished:
        if run.stage == "pruned" and run.result.get("sha256") not in parents:
            problems.append(f"{run.folder}: pruned, but not fine-tuned")
    for network in study.networks:
        cells = study.of(network)
        seeds = set().union(*(cell.seeds for cell in cells))
        for cell in cells:
            if lacking := sorted(seeds - cell.seeds):
                problems.append(f"{network} {cell.label}: no seed {', '.join(map(str, lacking))}")
        if not study.dense(network):
            problems.append(f"{network}: no dense network to compare with")
        tuned = {
            cell.label: cell.first.result["arguments"]["epochs"]
            for cell in cells
            if cell.first.stage == "finetuned"
        }
        if len(set(tuned.values())) > 1:
            told = ", ".join(f"{label} {epochs}" for label, epochs in tuned.items())
            problems.append(f"{network}: fine-tuned for unequal epochs: {told}")
        timed = [cell for cell in cells if any(run.speeds for run in cell.runs)]
        if timed and len(timed) < len(cells):
            names = ", ".join(cell.label for cell in cells if cell not in timed)
            problems.append(f"{network}: not measured by benchmark.py: {names}")
    return problems
