"""Plots, with matplotlib: functions from a study to a figure, None where there is nothing to show.

One colour for each way of pruning throughout; controls are hollow.
"""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from utils.files import write_atomically

from .collect import Cell, Study
from .runs import DENSE, Finished

COLOURS = {
    DENSE: "#7f7f7f",
    "l1": "#3b76d6",
    "soft": "#e8871e",
    "weight": "#2ca25f",
    "random": "#a35cc9",
    "scratch": "#d6455d",
}
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")
INK = "#010203"  # stands for the colour of the text around the plot
STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8888",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8883",
    "figure.dpi": 120,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": ["DejaVu Sans"],
}
WIDTH = 8.2  # inches, of every figure
Published = Sequence[dict[str, Any]]


def figures(study: Study, published: Published = ()) -> dict[str, Figure]:
    """Name -> figure, of all that have something to show."""
    found: dict[str, Figure | None] = {}
    with matplotlib.rc_context(STYLE):
        found["accuracy-macs"] = accuracy(
            study,
            lambda c, _: c.mean("effective_macs") / 1e6,
            "effective MACs, millions",
            published,
        )
        found["accuracy-size"] = accuracy(
            study, lambda c, _: c.mean("nonzero_params") / 1e6, "non-zero parameters, millions"
        )
        for name, key, what in (
            ("accuracy-latency", "latency_speedup", "one image"),
            ("accuracy-time", "measured_speedup", "the best batch"),
        ):
            of = partial(_time, key)
            found[name] = accuracy(study, of, f"time for {what}", timed=True)
        found["widths"] = widths(study)
        found["training"] = training(study)
        found["churn"] = churn(study)
        for name, drops in study.sensitivities.items():
            where, _, measured = name.removesuffix(".json").rpartition("sensitivity/")
            found["sensitivity-" + f"{where}{measured}".replace("/", "-")] = heat(drops)
    return {name: figure for name, figure in found.items() if figure}


def accuracy(
    study: Study,
    of: Callable[[Cell, str | None], float | None],
    label: str,
    published: Published = (),
    timed: bool = False,
) -> Figure | None:
    """Top-1 against a cost: a line for each series, spread of seeds, and the Pareto front.

    Times, which are shares of the dense network's, are `timed`: each machine has a panel of its
    own, panels share their axis, and a time that is shorter by a few percent alone, which is
    noise, puts no network on the front.
    """
    wanted = []
    for network in study.networks:
        for place in study.places(network) if timed else (None,):
            found = [(x, c) for c in study.of(network) if (x := of(c, place)) is not None]
            if len(found) > 1:
                wanted.append((network, place, found))
    if not wanted:
        return None
    height = 3.4 if len(wanted) <= 3 else 2.7
    figure, panels = _panels(len(wanted), height, sharey=True, sharex=timed)
    shown: dict[str, Any] = {}
    for axes, (network, place, found) in zip(panels, wanted, strict=True):
        points = sorted((x, cell.mean("top1")) for x, cell in found)
        noise = 1.03 if timed else 1.0
        front = [p for p in points if not any(q[0] <= p[0] * noise and q[1] > p[1] for q in points)]
        (line,) = axes.plot(*zip(*front, strict=True), color="#8886", lw=5, zorder=1)
        shown["Pareto front"] = line
        for series in dict.fromkeys(cell.first.series for _, cell in found):
            own = [(x, cell) for x, cell in found if cell.first.series == series]
            shown[series] = _draw_series(axes, own, marker(study, series))
        for point in _published_here(study, network, published):
            at = point["x"], point["top1"]
            (shown["published"],) = axes.plot(*at, "x", ms=5, color="#999", zorder=2)
            style = {"fontsize": 6, "color": "#999", "textcoords": "offset points"}
            axes.annotate(point["method"], at, xytext=(4, -2), **style)
        axes.set_title(network)
        _log_axis(axes)
        axes.set_xlabel(f"{label} / dense\n{textwrap.fill(place, 38)}" if timed else label)
    panels[0].set_ylabel("top-1 %")
    _legend(figure, shown)
    return figure


def _draw_series(axes: Axes, points: list[tuple[float, Cell]], shape: str) -> Any:
    run = points[0][1].first
    x, cells = zip(*points, strict=True)
    y = [cell.mean("top1") for cell in cells]
    spread = [cell.spread("top1") or 0 for cell in cells]
    style = {"color": colour(run), "marker": shape, "ms": 6, "capsize": 2, "lw": 1.4}
    if run.series == DENSE:
        style |= {"marker": "*", "ms": 12}
    if run.control:
        style |= {"mfc": "none", "ls": "--", "lw": 1}
    return axes.errorbar(x, y, yerr=spread if any(spread) else None, zorder=3, **style)


def _published_here(study: Study, network: str, published: Published) -> list[dict[str, Any]]:
    dense = study.dense(network)
    own = [p for p in published if f"{p['dataset']} {p['network']}" == network]
    if dense is None:
        return []
    return [{**p, "x": dense.mean("effective_macs") / 1e6 / p["speedup"]} for p in own]


def widths(study: Study) -> Figure | None:
    """Channels of every convolution, before and after, for the first seed."""
    panels_of: dict[tuple[str, str], list[Cell]] = {}
    for cell in study.cells:
        dense = study.dense(cell.first.network)
        if dense is None or cell is dense or cell.first.control:
            continue
        if cell.first.result.get("widths") != dense.first.result.get("widths"):
            panels_of.setdefault((cell.first.network, cell.first.amount), []).append(cell)
    if not panels_of:
        return None
    figure, panels = _panels(len(panels_of), 2.6)
    shown: dict[str, Any] = {}
    every = dict.fromkeys(c.first.series for cells in panels_of.values() for c in cells)
    dashes = dict(zip(every, itertools.cycle(DASHES)))  # equal ones show through
    for axes, ((network, amount), cells) in zip(panels, panels_of.items(), strict=True):
        before = study.dense(network).first.result["widths"]
        names = [name for name in before if ".se." not in name]
        positions = range(len(names))
        shown[DENSE] = axes.bar(positions, [before[n] for n in names], color="#8884", width=1)
        for cell in cells:
            after = [cell.first.result["widths"].get(name, 0) for name in names]
            style = {"color": colour(cell.first), "marker": marker(study, cell.first.series)}
            style |= {"where": "mid", "lw": 1.3, "ms": 3, "ls": dashes[cell.first.series]}
            (shown[cell.first.series],) = axes.step(positions, after, **style)
        axes.set_title(f"{network}\n{amount} pruned")
        axes.set_xlabel("convolution, from input to output")
    panels[0].set_ylabel("channels")
    _legend(figure, shown)
    return figure


def training(study: Study) -> Figure | None:
    """Test accuracy by epoch: from scratch, and recovering."""
    whole = ("baseline", "like", "scratch")
    sides = (("from scratch", lambda s: s in whole), ("fine-tuning", lambda s: s not in whole))
    wanted = []
    for network in study.networks:
        for title, belongs in sides:
            cells = [c for c in study.of(network) if belongs(c.first.stage) and c.first.curve]
            if cells:
                wanted.append((f"{network}\n{title}", cells))
    if not wanted:
        return None
    figure, panels = _panels(len(wanted), 2.8)
    shown: dict[str, Any] = {}
    amounts = sorted({cell.first.amount for cell in study.cells if cell.first.amount})
    dashes = {"": "-", **dict(zip(amounts, itertools.cycle(DASHES)))}
    for axes, (title, cells) in zip(panels, wanted, strict=True):
        for cell in cells:
            run = cell.first
            dash = dashes[run.amount]
            epochs = [row["epoch"] for row in run.curve]
            top1 = [row["top1"] for row in run.curve]
            style = {"color": colour(run), "marker": marker(study, run.series), "ms": 3}
            (line,) = axes.plot(epochs, top1, dash, lw=1.3, markevery=0.2, **style)
            shown.setdefault(run.series, line)
        axes.set_title(title)
        here = {cell.first.amount for cell in cells}
        key = ", ".join(f"{amount} {dashes[amount]}" for amount in amounts if amount in here)
        _epochs_axis(axes, key)
    panels[0].set_ylabel("top-1 % on test images")
    _legend(figure, shown)
    return figure


def churn(study: Study) -> Figure | None:
    """Soft pruning at work: filters that change sides, and how near the choice is to its end."""
    runs = [c.first for c in study.cells if any("flipped" in row for row in c.first.curve)]
    if not runs:
        return None
    figure, panels = _panels(len(runs), 2.6)
    shown: dict[str, Any] = {}
    for axes, run in zip(panels, runs, strict=True):
        epochs = [row["epoch"] for row in run.curve]
        for key, words, shade in (
            ("flipped", "filters that changed sides", COLOURS["soft"]),
            ("regrown", "filters that grew back", COLOURS["l1"]),
        ):
            values = [row.get(key) or 0 for row in run.curve]
            shown[words] = axes.bar(epochs, values, color=shade, width=0.8)
        axes.set_title(f"{run.network}\n{run.amount} {run.series}")
        _epochs_axis(axes)
        right = axes.twinx()
        right.grid(False)
        right.set_ylim(0, 105)
        overlap = 100 * np.array([row.get("overlap") for row in run.curve], float)
        (line,) = right.plot(epochs, overlap, color="#888", lw=1.5)
        shown["overlap with the final choice, %"] = line
    panels[0].set_ylabel("filters")
    _legend(figure, shown)
    return figure


def sensitivity(drops: dict[str, dict[str, float]], path: Path) -> None:
    """The heat map of one measurement, as a PNG file."""
    with matplotlib.rc_context(STYLE):
        figure = heat(drops)
    write_atomically(path, lambda file: file.write(to_png(figure)))


def heat(drops: dict[str, dict[str, float]]) -> Figure:
    """Group x ratio -> accuracy drop in points."""
    groups, ratios = list(drops), list(next(iter(drops.values())))
    values = [[drops[group][ratio] for ratio in ratios] for group in groups]
    figure = Figure(figsize=(6, 1.2 + 0.24 * len(groups)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="magma_r", vmin=0)
    axes.grid(False)
    axes.set_xticks(range(len(ratios)), [f"{float(ratio):.0%}" for ratio in ratios])
    axes.set_yticks(range(len(groups)), groups)
    axes.set_xlabel("channels of the group cut")
    axes.set_title("Training accuracy lost when one group is cut alone")
    figure.colorbar(image, label="points lost")
    largest = max(map(max, values))
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            shade = "white" if value > 0.45 * largest else "black"
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": shade}
            axes.text(column, row, f"{value:.1f}", **style)
    return figure


def to_png(figure: Figure) -> bytes:
    """For a white page."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=150, facecolor="white")
    return file.getvalue()


def to_svg(figure: Figure) -> str:
    """For inclusion in a page of any colour: transparent, its ink is that of the page's text."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)  # as wide as the page has room


def colour(run: Finished) -> str:
    """Of a series: that of its method, or of the control that it is."""
    words = run.series.split()
    kind = "scratch" if run.stage == "like" else "random" if "random" in words else words[0]
    return COLOURS.get(kind, "#17a2b8")


def marker(study: Study, series: str) -> str:
    """Tells the variants of a method apart, which share its colour."""
    method = series.split()[0]
    every = (cell.first.series for cell in study.cells)
    variants = list(dict.fromkeys(other for other in every if other.split()[0] == method))
    return MARKERS[variants.index(series) % len(MARKERS)]


def _panels(count: int, height: float, **shared: bool) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * lines + 0.4), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
    for empty in panels[count:]:
        empty.remove()
    for axes in panels[:count]:  # those above an empty place too
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _legend(figure: Figure, shown: dict[str, Any]) -> None:
    columns = 4 if max(map(len, shown)) < 24 else 3
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns)


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high / low < 60 else (1.0,)
    if high / low < 6:
        steps = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    axes.xaxis.set_major_locator(MaxNLocator(6) if high / low < 1.6 else LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _epochs_axis(axes: Axes, key: str = "") -> None:
    axes.set_xlabel(f"epoch ({key})" if key else "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _time(key: str, cell: Cell, place: str | None) -> float | None:
    """As a share of the dense network's, which was timed in the same run."""
    speedup = cell.mean(key, place)
    return 1 / speedup if speedup else None
