"""Plots, with matplotlib: each a figure with one panel, None where there is nothing to show.

One color for each method throughout; controls are hollow and dashed.
"""

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from textwrap import fill

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from utils.files import write_atomically

from .load import DENSE, Cell, Identity, Study
from .tables import mac_reduction

GRAY = "#7f7f7f"
COLORS = {DENSE: GRAY, "l1": "#3b76d6", "soft": "#e8871e", "weight": "#2ca25f"}
COLORS |= {"random": "#a35cc9", "scratch": "#d6455d", "longer": GRAY}
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
FIRST = ("Top-1 against speedup", "Top-1 against MACs")
TICKS = (0.5, 0.7, 1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)  # of an axis of gains
NOISE = 1.03  # a plot whose values all lie within 3 % shows nothing
matplotlib.style.use(Path(__file__).with_name("plots.mplstyle"))
# Of names that the font lacks. The page shows them in the fonts of the browser.
warnings.filterwarnings("ignore", "Glyph .* missing from font")
INK = matplotlib.rcParams["text.color"]  # stands for the color of the text around the plot
# What is drawn for a cell or series: identity, label, x, y, and halves of error bars or None.
Line = tuple[Identity, str, Sequence[float], Sequence[float], Sequence[float] | None]


def plots(study: Study, network: str) -> dict[str, Figure]:
    """Title -> figure, of all that have something to show for a network."""
    cells = study.cells[network]
    tuned = [cell for cell in cells if cell.runs[0]["stage"] == "finetuned"]
    shown = [c for c in cells if c.identity.series != DENSE or c is study.dense(network)]
    trained = [cell for cell in shown if cell.runs[0]["stage"] != "pruned"]
    macs = ("MAC reduction", partial(mac_reduction, study))
    time = ("speedup, measured", lambda cell: cell.mean("measured_speedup"))
    figures = {
        FIRST[0]: against(trained, *time, "top-1 %", "top1"),
        FIRST[1]: against(trained, *macs, "top-1 %", "top1"),
        "Speedup against MACs": against(shown, *macs, time[0], "measured_speedup"),
        "Training from scratch": curves([c for c in cells if c not in tuned], "top1", "top-1 %"),
    }
    for amount in dict.fromkeys(cell.identity.amount for cell in tuned):
        alike = [cell for cell in tuned if cell.identity.amount == amount]
        figures[f"Fine-tuning, {amount or 'nothing'} pruned"] = curves(alike, "top1", "top-1 %")
    figures["Pruned or restored"] = curves(cells, "flipped", "filters pruned or restored")
    figures["Widths"] = widths(cells)
    figures = {title: figure for title, figure in figures.items() if figure}
    for title, figure in figures.items():
        figure.suptitle(fill(f"{network}: {title}", 56))
        ConstrainedLayoutEngine().execute(figure)  # once; if it were the figure's, at every save
    return figures


def against(
    cells: Sequence[Cell], x: str, gain: Callable[[Cell], float | None], y: str, key: str
) -> Figure | None:
    """A figure of the results, with the spread of the seeds, against a gain: a line per series.

    None if all gains lie within NOISE of each other.
    """
    known = [(gain(cell), cell) for cell in cells if gain(cell) and cell.mean(key) is not None]
    gains = [value for value, _ in known]
    if not gains or max(gains) < NOISE * min(gains):
        return None
    lines = []
    kinds = dict.fromkeys((cell.identity.series, _targeted(cell)) for _, cell in known)
    for series, target in kinds:
        own = ((g, c) for g, c in known if (c.identity.series, _targeted(c)) == (series, target))
        xs, alike = zip(*own, strict=True)
        name = f"{series}, target" if target and (series, False) in kinds else series
        spread = [c.spread(key) or 0 for c in alike]
        lines.append((alike[0].identity, name, xs, [c.mean(key) for c in alike], spread))
    figure = draw(x, y, lines)
    (axes,) = figure.axes
    _gains(axes, "x")
    if key != "top1":  # a gain, too: the line is where both are the same
        _gains(axes, "y")
        axes.axline((1, 1), (2, 2), color=GRAY, lw=0.8, ls=":")
    return figure


def _targeted(cell: Cell) -> bool:
    """Whether a target told how much to cut: it cuts elsewhere than a ratio, so on another line."""
    steps = cell.identity.steps
    return bool(steps) and steps[-1].ratio is None and steps[-1].pattern is None


def _gains(axes: Axes, side: str) -> None:
    """Make an axis, "x" or "y", logarithmic, for gains."""
    low, high = getattr(axes.dataLim, f"interval{side}")
    axis = getattr(axes, f"{side}axis")
    axes.set(**{f"{side}scale": "log"})
    axis.set_ticks(TICKS, minor=False)
    axis.set_ticks([], minor=True)
    axis.set_major_formatter("{x:g}x")
    axes.set(**{f"{side}lim": (0.93 * low, 1.08 * high)})


def curves(cells: Sequence[Cell], key: str, label: str) -> Figure | None:
    """A figure of the log by epoch, of the first seed of each cell."""
    lines, amounts = [], {cell.identity.amount for cell in cells}
    for cell in cells:
        name = cell.identity.series + f" {cell.identity.amount}" * (len(amounts) > 1)
        if points := [(row["epoch"], row[key]) for row in cell.runs[0].curve if key in row]:
            lines.append((cell.identity, name, *zip(*points, strict=True), None))
    return draw("epoch", label, lines) if lines else None


def widths(cells: Sequence[Cell]) -> Figure | None:
    """Channels of the layers that differ, of the first seed; cells left alike share a line."""
    lines, alike = [], defaultdict(list)
    most = max(cell.mean("params") for cell in cells)
    cut = [c for c in cells if c.identity.series == DENSE or c.mean("params") < most / NOISE]
    left = {c.identity: c.runs[0]["widths"] for c in cut if not c.identity.control}
    layers = [name for name in cells[0].runs[0]["widths"] if ".se." not in name]
    layers = [name for name in layers if len({kept.get(name) for kept in left.values()}) > 1]
    for identity, kept in left.items():
        alike[tuple(kept.get(name, 0) for name in layers)].append(identity)
    for y, (first, *others) in alike.items():
        series = list(dict.fromkeys(identity.series for identity in (first, *others)))
        names = ", ".join(series) if len(series) < 3 else f"{series[0]}, {len(series) - 1} others"
        lines.append((first, f"{names} {first.amount}", range(1, len(y) + 1), y, None))
    return draw("layer that was cut, from input to output", "channels", lines) if layers else None


def draw(x: str, y: str, lines: Sequence[Line]) -> Figure:
    """Lines on axes of these labels; those of controls with a spread are only points.

    The color tells the method, or the control that it is; marker and dash the lines of one color.
    """
    figure = Figure()
    axes = figure.subplots()
    looks = defaultdict(lambda: zip(cycle(MARKERS), cycle(DASHES)))
    for identity, label, xs, ys, spread in lines:
        color = COLORS.get(identity.control or identity.method, "#17a2b8")
        marker, dash = next(looks[color])
        style = {"marker": "*", "ms": 9} if identity.series == DENSE else {"marker": marker}
        style |= {"mfc": "none", "ms": 7} if identity.control else {}
        style |= {"ls": "" if identity.control and spread else dash, "color": color}
        style |= {"label": label.strip(), "markevery": max(1, len(xs) // 6)}
        axes.errorbar(xs, ys, spread if any(spread or ()) else None, **style)
    axes.set(xlabel=x, ylabel=y)
    axes.locator_params(axis="x", nbins=6, integer=True, min_n_ticks=1)
    if len(lines) > 1:
        columns = max(1, 3 - max(len(line[1]) for line in lines) // 18)
        legend = figure.legend(loc="outside lower center", ncols=columns)
        figure.set_figheight(
            figure.get_figheight() + legend.get_window_extent().height / figure.dpi
        )
    return figure


def sensitivity(drops: dict[str, dict[str, float]], path: Path) -> None:
    """The heat map of one measurement, group x ratio -> points lost, as a PNG file."""
    values = np.array([list(row.values()) for row in drops.values()])
    ratios = [f"{float(ratio):.0%}" for ratio in next(iter(drops.values()))]
    figure = Figure(figsize=(6, 1.2 + 0.24 * len(drops)), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    most = max(1, values.max())  # below one point nothing is dark
    image = axes.imshow(values, aspect="auto", cmap="magma_r", vmin=0, vmax=most)
    axes.set(xticks=range(len(ratios)), xticklabels=ratios, xlabel="channels of the group cut")
    axes.set(yticks=range(len(drops)), yticklabels=drops)
    figure.colorbar(image, label="points lost")
    for (row, column), value in np.ndenumerate(values):
        shade = "white" if value > 0.45 * most else "black"
        told = f"{round(value.item(), 1) + 0:.1f}"  # without the sign of -0.0
        axes.text(column, row, told, ha="center", va="center", color=shade)
    figure.suptitle("Training accuracy lost when one group is cut alone")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As a PNG file, for a white page."""
    write_atomically(path, lambda f: figure.savefig(f, format="png", dpi=150, facecolor="white"))


def to_svg(figure: Figure) -> str:
    """For inclusion in a page of any color: transparent, its ink is that of the page's text."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue().replace(INK, "currentColor")
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)  # as wide as the page has room
