"""Plots, with matplotlib."""

from __future__ import annotations

from pathlib import Path

from .files import write_atomically


def sensitivity(drops: dict[str, dict[str, float]], path: Path) -> None:
    """Heat map of group x ratio -> accuracy drop in points, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups, ratios = list(drops), list(next(iter(drops.values())))
    values = [[drops[group][ratio] for ratio in ratios] for group in groups]
    figure, axes = pyplot.subplots(figsize=(6, 1.2 + 0.24 * len(groups)), layout="constrained")
    image = axes.imshow(values, aspect="auto", cmap="magma_r", vmin=0)
    axes.set_xticks(range(len(ratios)), [f"{float(ratio):.0%}" for ratio in ratios])
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.set_xlabel("channels of the group cut")
    axes.set_title("Accuracy lost when one group is cut alone", fontsize=10)
    figure.colorbar(image, label="top-1 on training images, points lost")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            shade = "white" if value > 0.45 * max(map(max, values)) else "black"
            axes.text(
                column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=shade
            )
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
    pyplot.close(figure)
