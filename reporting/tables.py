"""The table of a study: its columns once, for the page, Markdown and CSV."""

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .load import CONTROLS, TIMES, Cell, Study

# Student's t: two-sided 95 %, for 1, 2, ... degrees of freedom.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
NOTE = (
    "±: standard deviation over seeds; of Δ and vs, which compare equal seeds, the 95 % interval "
    "(Student's t). MACs: as if zero weights cost nothing. Speedup: images/s at the best batch "
    "size, median of ratios. Latency: one image. Empty: not measured, or on a busy machine."
)


class Column(NamedTuple):
    """Heading, how numbers are written ("" for words), and what a cell has there.

    That is a value or, if the column has a `spread`, a pair of a mean and what stands after ±.
    """

    name: str
    form: str
    of: Callable[[Study, Cell], Any]
    spread: str = ""


def interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean of paired differences, and half of its 95 % interval, which takes two of them."""
    if len(differences) < 2:
        return (*differences, None, None)[:2]
    t = T95[min(len(differences) - 1, len(T95)) - 1]
    return statistics.mean(differences), t * statistics.stdev(differences) / len(differences) ** 0.5


def mac_reduction(study: Study, cell: Cell) -> float | None:
    """How many times fewer MACs than the dense network, if zero weights cost nothing."""
    dense = study.dense(cell.identity.network)
    return dense.mean("effective_macs") / cell.mean("effective_macs") if dense else None


def _mean(name: str, form: str, key: str, unit: float = 1) -> Column:
    return Column(name, form, lambda _, cell: (mean := cell.mean(key)) and mean / unit)


def _versus(control: str) -> Column:
    return Column(f"vs {control}", "+.2f", lambda s, c: interval(s.to_control(c, control)), "95 %")


COLUMNS = (
    Column("method", "", lambda _, cell: cell.identity.series),
    Column("pruned", "", lambda _, cell: cell.identity.amount),
    Column("top-1 %", ".2f", lambda _, cell: (cell.mean("top1"), cell.spread("top1")), "sd"),
    Column("Δ top-1", "+.2f", lambda study, cell: interval(study.to_dense(cell)), "95 %"),
    _mean("params M", ".3f", "params", 1e6),
    Column("MAC reduction", ".2f", mac_reduction),
    _mean("speedup", ".2f", "measured_speedup"),
    _mean("latency ms", ".2f", "latency_ms"),
    Column("control", "", lambda _, cell: cell.identity.control),
    *map(_versus, CONTROLS),
    Column("seeds", "", lambda _, cell: len(cell.runs)),
    Column("seeds timed", "", lambda _, cell: max(len(cell.values(k)) for k in TIMES) or None),
    Column("epochs", "", lambda _, cell: " + ".join(map(str, cell.identity.epochs))),
    _mean("nonzero M", ".3f", "nonzero_params", 1e6),
    _mean("MACs M", ".1f", "macs", 1e6),
    _mean("speedup / MAC reduction", ".2f", "speedup_ratio"),
    _mean("latency speedup", ".2f", "latency_speedup"),
    _mean("images/s", ",.0f", "images_per_second"),
    _mean("peak memory MB", ".0f", "peak_memory_bytes", 1e6),
    _mean("file MB", ".2f", "file_bytes", 1e6),
    _mean("compressed MB", ".2f", "compressed_bytes", 1e6),
)
NAMES = [column.name for column in COLUMNS]
# Tables of several engines: title, time and speedup, and how the time is written.
ENGINES = {
    "Images/s at the best batch (speedup)": ("images_per_second", "measured_speedup", ",.0f"),
    "Milliseconds for one image (speedup)": ("latency_ms", "latency_speedup", ".2f"),
}
MAIN = 8  # columns on the first screen
CARD = ("top-1 %", "params M", "MACs M", "latency ms", "images/s")  # of a dense network


def texts(study: Study, cells: Sequence[Cell]) -> list[list[str]]:
    """A row of COLUMNS for each cell: "1.61 ± 0.39"; "" for what was not measured."""
    return [[_text(column, column.of(study, cell)) for column in COLUMNS] for cell in cells]


def _text(column: Column, value: Any) -> str:
    mean, half = value if column.spread else (value, None)
    text = "" if mean is None else f"{mean:{column.form}}"
    return text if half is None else f"{text} ± {half:.2f}"


def used(table: Sequence[Sequence[str]]) -> list[int]:
    """The columns that hold anything."""
    return [i for i, column in enumerate(zip(*table, strict=True)) if any(column)]


def markdown(head: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    """A table, without columns that hold nothing."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *table]
    lines = [[escaped(line[i]) for i in used(table)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(words: str) -> str:
    """For a line of Markdown."""
    return " ".join(words.replace("|", "\\|").replace("<", "&lt;").split())


def by_engine(study: Study, network: str, title: str) -> list[list[str]]:
    """One of ENGINES: heading, and a line for each cell that was timed on the study's machine.

    Means over the seeds. Empty if all were timed in one engine.
    """
    time, speedup, form = ENGINES[title]
    timed: list[tuple[Cell, dict[str, list[dict]]]] = []
    for cell in study.cells[network]:
        rows = defaultdict(list)
        for run in cell.runs:
            for (machine, engine), row in run.timings.items():
                if machine == study.machine and (row[time], row[speedup]) != (None, None):
                    rows[engine].append(row)
        timed.append((cell, rows))
    engines = list(dict.fromkeys(engine for _, rows in timed for engine in rows))
    if len(engines) < 2:
        return []

    def text(rows: list[dict[str, Any]]) -> str:
        times, gains = ([row[k] for row in rows if row[k] is not None] for k in (time, speedup))
        gain = f"({statistics.mean(gains):.2f})" if gains else ""
        return f"{statistics.mean(times):{form}} {gain}" if times else gain

    lines = [
        [cell.identity.series, cell.identity.amount, *(text(rows[engine]) for engine in engines)]
        for cell, rows in timed
        if rows
    ]
    return [["method", "pruned", *engines], *lines]


def to_markdown(study: Study, title: str, images: Sequence[str]) -> str:
    """The whole report; `images` are files beside it."""
    parts = [f"# {escaped(title)}", escaped(place(study)), NOTE]
    for network, cells in study.cells.items():
        parts += [f"## {escaped(network)}", markdown(NAMES, texts(study, cells))]
        for name in ENGINES:
            if lines := by_engine(study, network, name):
                parts += [f"### {name}", markdown(lines[0], lines[1:])]
    parts += [f"![{name}]({name})" for name in images]
    parts += ["## Left out"] * bool(study.left_out)
    return "\n\n".join(parts + [f"- {escaped(line)}" for line in study.left_out]) + "\n"


def place(study: Study) -> str:
    """Where the times are from."""
    times = f"times: {study.engine} on {study.machine}" if study.engine else "nothing timed"
    return f"{len(study.runs)} runs; {times}"


def card(study: Study, network: str) -> list[str]:
    """Figures of the dense network: "66.15 ± 0.37 % top-1", "0.276 M params"."""
    if not (dense := study.dense(network)):
        return ["no dense network"]
    row = zip(NAMES, texts(study, [dense])[0], strict=True)
    return [
        " ".join([text, *reversed(name.split())]) for name, text in row if text and name in CARD
    ]


def to_csv(study: Study) -> str:
    """The table with all digits and columns; spreads have columns of their own."""
    file, cells = io.StringIO(), [cell for group in study.cells.values() for cell in group]
    table = [["network"], *([_no_formula(cell.identity.network)] for cell in cells)]
    for column in COLUMNS:
        table[0] += [column.name, f"{column.name} {column.spread}"][: 1 + bool(column.spread)]
        for line, cell in zip(table[1:], cells, strict=True):
            value = column.of(study, cell)
            line += value if column.spread else [_no_formula(value)]
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def _no_formula(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@") else value
