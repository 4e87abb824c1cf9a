"""The table of a study: its columns once, for Markdown, CSV and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from measurement.rows import TIMED

from .collect import Cell, Study
from .summary import as_number, lost, theoretical_speedup


class Column(NamedTuple):
    """Heading, how many digits its numbers have (None for words), and what a cell has there."""

    name: str
    digits: int | None = None
    of: Callable[[Study, Cell], Any] | None = None


def _millions(key: str) -> Callable[[Study, Cell], float]:
    return lambda study, cell: cell.mean(key) / 1e6


def _timed(key: str, unit: float = 1.0) -> Callable[[Study, Cell], float | None]:
    def of(study: Study, cell: Cell) -> float | None:
        value = study.timed(cell, key)
        return None if value is None else value / unit

    return of


COLUMNS = (
    Column("network", None, lambda study, cell: cell.first.network),
    Column("method", None, lambda study, cell: cell.first.series),
    Column("pruned", None, lambda study, cell: cell.first.amount),
    Column("control", None, lambda study, cell: "control" if cell.first.control else ""),
    Column("seeds", 0, lambda study, cell: len(cell.runs)),
    Column("top-1 %", 2, lambda study, cell: cell.mean("top1")),
    Column("±", 2, lambda study, cell: cell.spread("top1")),
    Column("lost", 2, lost),
    Column("epochs", 0, Study.epochs),
    Column("params M", 3, _millions("params")),
    Column("nonzero M", 3, _millions("nonzero_params")),
    Column("MACs M", 1, _millions("macs")),
    Column("MACs x", 2, theoretical_speedup),
    Column("file MB", 2, _timed("file_bytes", 1e6)),
    Column("compressed MB", 2, _timed("compressed_bytes", 1e6)),
    Column("timed in", None, Study.timed_in),
    Column("ms at 1", 2, _timed("latency_ms")),
    Column("time x at 1", 2, _timed("latency_speedup")),
    Column("img/s", 0, _timed("images_per_second")),
    Column("time x", 2, _timed("measured_speedup")),
    Column("memory MB", 0, _timed("peak_memory_bytes", 1e6)),
    Column("CPU ms", 1, _timed("cpu_ms")),
    Column("CUDA ms", 1, _timed("cuda_ms")),
)


def note(study: Study) -> str:
    """What the columns mean."""
    told = _engines(study)
    return (
        "±: standard deviation over seeds. lost: points of top-1 below the dense network. epochs: "
        "of all trainings together. MACs x, time x: how many times less than the dense network; "
        "MACs count as if zero weights cost nothing, which in dense kernels they do not. Time x at "
        "one image (at 1) and at the batch with the best throughput"
        + (f", {told}" if told else "")
        + ". Empty: not measured."
    )


def rows(study: Study) -> list[list[Any]]:
    """One row of COLUMNS for each cell; None where nothing was measured."""
    return [[column.of(study, cell) for column in COLUMNS] for cell in study.cells]


def used(table: list[list[Any]]) -> list[int]:
    """The columns that hold anything."""
    columns = enumerate(zip(*table, strict=True))
    return [i for i, column in columns if any(value not in (None, "") for value in column)]


def text(value: Any, digits: int | None) -> str:
    """A cell for people: "" for what was not measured."""
    if value is None:
        return ""
    return str(value) if digits is None else f"{value:.{digits}f}"


def markdown(study: Study) -> str:
    """The table in Markdown, and what its columns mean."""
    return _markdown(COLUMNS, rows(study)) + f"\n{note(study)}\n"


def headline(study: Study) -> str:
    """In Markdown, what a visitor wants to know first: a row for each way, a column each amount."""
    amounts = sorted({cell.first.amount for cell in study.cells}, key=as_number)
    columns = [Column("network"), Column("method"), Column("runs each")]
    columns += [Column(f"{amount} pruned" if amount else "whole") for amount in amounts]
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for cell in study.cells:
        lines.setdefault((cell.first.network, cell.first.series), {})[cell.first.amount] = cell
    several = len({study.timed_in(cell) for cell in study.cells} - {None}) > 1
    table = []
    for names, cells in lines.items():
        counts = [len(cell.runs) for cell in cells.values()]
        low, high = min(counts), max(counts)
        told = [_in_short(study, cells[a], several) if a in cells else "" for a in amounts]
        table.append([*names, f"{low}" if low == high else f"{low} to {high}", *told])
    timed = _engines(study)
    return _markdown(columns, table) + (
        "\nTop-1 % ± standard deviation over seeds; then how many times fewer MACs there are if "
        "zeros cost nothing"
        + (f", and how many times as many images/s were measured ({timed})" if timed else "")
        + ".\n"
    )


def _in_short(study: Study, cell: Cell, several: bool) -> str:
    spread = cell.spread("top1")
    told = text(cell.mean("top1"), 2) + (f" ± {spread:.2f}" if spread is not None else "")
    if not cell.first.amount:
        return told
    speedup = study.timed(cell, "measured_speedup")
    place = study.timed_in(cell)
    # Of "compile bf16 on AMD EPYC, 2 threads" the machine.
    where = f" ({place.split(' on ')[1].split(',')[0]})" if place and several else ""
    factors = (("fewer MACs", theoretical_speedup(study, cell)), (f"images/s{where}", speedup))
    return "<br>".join([told, *(f"{times:.2f}x {what}" for what, times in factors if times)])


def _engines(study: Study) -> str:
    """What times were measured in, and on how many seeds of a cell."""
    places = [study.timed_in(cell) for cell in study.cells]
    engines = list(dict.fromkeys(place for place in places if place))
    if not engines:
        return ""
    seeds = max(map(Cell.timed_seeds, study.cells, places))
    return f"{' or '.join(engines)}; {'one seed' if seeds == 1 else f'up to {seeds} seeds'}"


def engines_markdown(study: Study) -> str:
    """The figures of every engine, of one seed, in Markdown; "" if nothing was timed."""
    table = engine_rows(study)
    return _markdown(ENGINE_COLUMNS, table) if table else ""


def _markdown(columns: Sequence[Column], table: list[list[Any]]) -> str:
    if not table:
        return "Nothing that was fine-tuned or trained is here.\n"
    shown = used(table)
    head = "| " + " | ".join(columns[i].name for i in shown) + " |"
    rule = "|" + "|".join("---" if columns[i].digits is None else "---:" for i in shown) + "|"
    lines = [
        "| " + " | ".join(text(row[i], columns[i].digits) for i in shown) + " |" for row in table
    ]
    return "\n".join([head, rule, *lines]) + "\n"


def to_csv(study: Study) -> str:
    """The table with all digits and all columns."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.name for column in COLUMNS)
    writer.writerows(rows(study))
    return file.getvalue()


ENGINE_COLUMNS = (
    *(Column("network"), Column("method"), Column("pruned"), Column("engine")),
    *(Column(column.heading, column.digits) for column in TIMED),
)


def engine_rows(study: Study) -> list[list[Any]]:
    """One row of ENGINE_COLUMNS for each engine that a cell was timed in, on each machine."""
    found = []
    for cell in study.cells:
        for row in cell.speeds:
            words = [cell.first.network, cell.first.series, cell.first.amount, row["where"]]
            found.append([*words, *(column.value(row) for column in TIMED)])
    return found
