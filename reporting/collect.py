"""Which runs are seeds of one cell, and what a study lacks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import DENSE, Drops, Finished, lineage, read, unfinished

# The order in which ways of pruning are listed; variants follow the way that they vary.
METHODS = (DENSE, "l1", "soft", "weight")


@dataclass(frozen=True)
class Cell:
    """The same thing done with several seeds."""

    runs: tuple[Finished, ...]

    @property
    def first(self) -> Finished:
        return self.runs[0]

    @property
    def speeds(self) -> list[dict[str, Any]]:
        """A timing for each engine on each machine: that of the first run that was timed there."""
        found: dict[str, dict[str, Any]] = {}
        for row in (row for run in self.runs for row in run.speeds):
            found.setdefault(row["where"], row)
        return list(found.values())

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

    def timed_seeds(self, engine: str | None) -> int:
        """How many of its runs were timed in an engine."""
        return sum(any(row["where"] == engine for row in run.speeds) for run in self.runs)

    def minus(self, other: Cell) -> list[float]:
        """Differences of top-1 to another cell, seed by seed, of the seeds that both have."""
        theirs = {run.seed: run.result["top1"] for run in other.runs}
        return [r.result["top1"] - theirs[r.seed] for r in self.runs if r.seed in theirs]

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
    sensitivities: dict[str, Drops]

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(cell.first.network for cell in self.cells))

    def of(self, network: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.first.network == network]

    def dense(self, network: str) -> Cell | None:
        return next((c for c in self.of(network) if c.first.series == DENSE), None)

    def places(self, network: str) -> list[str]:
        """Where its times are compared: in one engine, on every machine; most cells first.

        The engine is the one that most cells were timed in; of those, the fastest.
        """
        rates: dict[str, list[float]] = {}
        for cell in self.of(network):
            for row in cell.speeds:
                rates.setdefault(row["where"], []).append(row["images_per_second"])
        ranked = sorted(rates, key=lambda name: (-len(rates[name]), -max(rates[name])))
        return [name for name in ranked if name.split(" on ")[0] == ranked[0].split(" on ")[0]]

    def engine(self, network: str) -> str | None:
        """The first of its places."""
        return next(iter(self.places(network)), None)

    def timed_in(self, cell: Cell) -> str | None:
        """Where its times are from: of the places of its network, that of most of its series."""
        series = [c for c in self.of(cell.first.network) if c.first.series == cell.first.series]
        found = [place for place in self.places(cell.first.network) if cell.timed_seeds(place)]
        return max(found, key=lambda p: sum(c.timed_seeds(p) > 0 for c in series), default=None)

    def timed(self, cell: Cell, key: str) -> float | None:
        """The mean of a figure in the benchmark, where its times are from; None if unknown."""
        engine = self.timed_in(cell)
        return cell.mean(key, engine) if engine else None

    def epochs(self, cell: Cell) -> int:
        """That it was trained for, those of the networks it came from counted in.

        Of the run that has the most of its parents here.
        """
        chain = max(map(self.lineage, cell.runs), key=len)
        return sum(run.result["arguments"].get("epochs") or 0 for run in chain)

    def lineage(self, run: Finished) -> list[Finished]:
        return lineage(run, self.finished)


def collect(roots: Iterable[Path]) -> Study:
    """Read all run folders below some folders. Raises FileNotFoundError if there are none."""
    roots = list(roots)
    finished, sensitivities, problems = read(roots)
    if not finished:
        raise FileNotFoundError(f"{', '.join(map(str, roots))}: no finished stage below")
    for root in roots:
        problems += unfinished(root)
    cells = _cells(finished, problems)
    study = Study(cells, finished, problems, sensitivities)
    problems += _missing(study)
    return study


def _cells(finished: Sequence[Finished], problems: list[str]) -> list[Cell]:
    """Group runs that differ in their seed only, in the order of the tables.

    Of runs that differ in more, the kind with the most seeds counts; of those, the first found.
    """
    grouped: dict[tuple, list[dict[int, Finished]]] = {}

    def differing(one: Finished, other: Finished) -> list[str]:
        return _differences(lineage(one, finished), lineage(other, finished))

    for run in finished:
        if run.stage == "pruned":
            continue
        kinds = grouped.setdefault((run.network, run.series, run.amount), [])
        alike = (k for k in kinds if not any(differing(other, run) for other in k.values()))
        seeds = next(alike, None)
        if seeds is None:
            kinds.append({run.seed: run})
        elif run.seed in seeds:
            problems.append(f"{run.folder}: the same cell and seed as {seeds[run.seed].folder}")
        else:
            seeds[run.seed] = run
    for kinds in grouped.values():
        kinds.sort(key=len, reverse=True)
        first = next(iter(kinds[0].values()))
        for run in (run for seeds in kinds[1:] for run in seeds.values()):
            told = ", ".join(differing(first, run))
            problems.append(f"{run.folder}: left out, other {told} than {first.folder}")

    def order(key: tuple[str, str, str]) -> tuple:
        network, series, amount = key
        method = series.split()[0]
        rank = METHODS.index(method) if method in METHODS else len(METHODS)
        return network, rank, series, amount

    return [
        Cell(tuple(run for _, run in sorted(grouped[key][0].items())))
        for key in sorted(grouped, key=order)
    ]


def _differences(one: Sequence[Finished], other: Sequence[Finished]) -> list[str]:
    """Arguments that keep two lineages from being seeds of the same thing, where both are here."""
    found = set()
    for pair in zip(reversed(one), reversed(other), strict=False):
        own = {"seed", "parent", "teacher_hash", "debug", "no_eval", "sensitivity"}
        # The default learning rate of fine-tuning follows what was cut, which scores may decide.
        own |= {"lr"} if all(run.stage == "finetuned" for run in pair) else set()
        first, second = (run.result["arguments"] for run in pair)
        found |= {
            key for key in (first.keys() | second.keys()) - own if first.get(key) != second.get(key)
        }
    return sorted(found)


def machines(study: Study) -> list[str]:
    """A line for each machine with its settings: what was trained and what was timed there."""
    found: dict[str, dict[str, set[int]]] = {}
    for run in study.finished:
        trained = [("trained", run.result["machine"])] if run.stage != "pruned" else []
        for what, machine in (*trained, *(("timed", row["machine"]) for row in run.speeds)):
            line = ", ".join(f"{key} {value}" for key, value in sorted(machine.items()))
            found.setdefault(line, {}).setdefault(f"{what} {run.network}", set()).add(run.seed)
    return [
        f"{line}: " + "; ".join(f"{what} {_seeds(seeds)}" for what, seeds in sorted(done.items()))
        for line, done in sorted(found.items())
    ]


def _seeds(seeds: set[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def _missing(study: Study) -> list[str]:
    """Cells, seeds, epochs and timings that others have; networks never fine-tuned."""
    problems = []
    parents = {run.result["arguments"].get("parent") for run in study.finished}
    here = {None, *(run.result["sha256"] for run in study.finished)}
    for run in study.finished:
        if run.stage != "like" and run.result["arguments"].get("parent") not in here:
            problems.append(f"{run.folder}: the stage that it came from is not here")
        if run.stage == "pruned" and run.result["sha256"] not in parents:
            problems.append(f"{run.folder}: pruned, but not fine-tuned")
    for network in study.networks:
        cells = study.of(network)
        seeds = set().union(*(cell.seeds for cell in cells))
        for cell in cells:
            if lacking := seeds - cell.seeds:
                problems.append(f"{network} {cell.label}: no {_seeds(lacking)}")
        if not study.dense(network):
            problems.append(f"{network}: no dense network to compare with")
        own, dataset = {DENSE, *(c.label for c in cells)}, cells[0].first.result["dataset"]
        every = (cell.label for cell in study.cells if cell.first.result["dataset"] == dataset)
        if absent := ", ".join(label for label in dict.fromkeys(every) if label not in own):
            problems.append(f"{network}: not finished, but of other networks: {absent}")
        tuned = {
            cell.label: cell.first.result["arguments"].get("epochs")
            for cell in cells
            if cell.first.stage == "finetuned"
        }
        if len(set(tuned.values())) > 1:
            told = ", ".join(f"{label} {epochs}" for label, epochs in tuned.items())
            problems.append(f"{network}: fine-tuned for unequal epochs: {told}")
        engine = study.engine(network)  # what was timed in others, or elsewhere too, lacks nothing
        untimed = [cell.label for cell in cells if study.timed_in(cell) is None]
        if engine and untimed:
            problems.append(f"{network}: not measured in {engine}: {', '.join(untimed)}")
    return problems
