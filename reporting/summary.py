"""The answers that the figures give, computed: nothing here is known beforehand."""

from __future__ import annotations

import re
import statistics
from math import log

import numpy as np

from measurement.diagnosis import keeps_up

from .collect import Cell, Study
from .runs import DENSE, FROM, FURTHER

CLOSE = 1.0  # points of top-1 below the dense network that count as free
# Student's t: two-sided 95 %, for 1, 2, ... degrees of freedom.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def answers(study: Study) -> dict[str, list[str]]:
    """Question -> the lines that answer it."""
    return {
        "Which method is best at each size?": [
            line for network in study.networks for line in best_at_each_size(study, network)
        ],
        "Where does pruning pay?": [
            line for network in study.networks for line in where_it_pays(study, network)
        ],
        "Does a separable network suffer more?": separable_against_standard(study),
    }


def points(cell: Cell) -> str:
    """Its accuracy, with the spread over its seeds."""
    spread = cell.spread("top1")
    told = f" ± {spread:.2f}" if spread is not None else ""
    return f"{cell.mean('top1'):.2f}{told} % (n={len(cell.runs)})"


def lost(study: Study, cell: Cell) -> float | None:
    """Points below the dense network, seed by seed, on average."""
    dense = study.dense(cell.first.network)
    drops = cell.minus(dense) if dense and dense is not cell else []
    return -statistics.mean(drops) if drops else None


def best_at_each_size(study: Study, network: str) -> list[str]:
    """For each amount pruned: the best way, the next, and the controls it has to beat.

    The same amount is not the same size: what is left to compute stands beside each.
    """
    lines = []
    cells = [cell for cell in study.of(network) if cell.first.amount]
    for amount in sorted({cell.first.amount for cell in cells}, key=as_number):
        own = [cell for cell in cells if cell.first.amount == amount]
        ranked = sorted(own, key=lambda cell: -cell.mean("top1"))
        methods = [cell for cell in ranked if not cell.first.control]
        if not methods:
            continue
        told = ", then ".join(_with_size(study, cell) for cell in methods)
        line = f"{network}, {amount} pruned: {told}"
        slim = next((cell for cell in methods if _smaller(study, cell)), None)
        if slim is not None and slim is not methods[0]:
            line += f". Best of those whose dense kernels have less to do: {slim.first.series}"
        for control in (cell for cell in ranked if cell.first.control):
            peer = _peer(control, methods)
            if peer is not None:
                line += f". {_compared(study, peer, control)}"
        lines.append(line + ".")
    return lines


def _with_size(study: Study, cell: Cell) -> str:
    times = theoretical_speedup(study, cell)
    size = f", {times:.2f}x fewer effective MACs" if times else ""
    return f"{cell.first.series} with {points(cell)}{size}"


def _peer(control: Cell, methods: list[Cell]) -> Cell | None:
    """What a control controls: the same method without the word that makes it one."""
    words = control.first.series.replace(f" {FROM['like']}", "").replace(" (equal FLOPs)", "")
    series = " ".join(word for word in words.split() if word != "random")
    names = (series, f"{series} {FROM['scratch']}")
    return next((c for name in names for c in methods if c.first.series == name), None)


def _compared(study: Study, cell: Cell, control: Cell) -> str:
    """By how much a method beats its control, and whether that is more than chance."""
    name, other = cell.first.series, control.first.series
    gains = cell.minus(control)
    if not gains:
        return f"{name} and {other} have no seed in common"
    gain, half = interval(gains)
    own, theirs = study.epochs(cell), study.epochs(control)
    epochs = f", after {own} epochs against {theirs}" if own != theirs else ""
    if half is None:
        side = "behind" if gain < 0 else "ahead of"
        return f"{name} is {abs(gain):.2f} points {side} {other}{epochs} (one seed: no result yet)"
    told = f"{abs(gain):.2f} ± {half:.2f} points (95 %, n={len(gains)}){epochs}"
    if abs(gain) <= half:
        return f"{name} and {other} cannot be told apart: {told}"
    return f"{name} {'beats' if gain > 0 else 'loses to'} {other} by {told}"


def interval(differences: list[float]) -> tuple[float, float | None]:
    """Mean of paired differences, and half of its 95 % interval by Student's t; None for one."""
    mean, count = statistics.mean(differences), len(differences)
    if count == 1:
        return mean, None
    t = T95[min(count - 1, len(T95)) - 1]
    return mean, t * statistics.stdev(differences) / count**0.5


def where_it_pays(study: Study, network: str) -> list[str]:
    """Per method, the largest cut within a point of the dense network; whether time followed.

    And what the dense network gains by as many epochs more, where that is known.
    """
    lines, dense = [], study.dense(network)
    if dense is None:
        return []
    methods: dict[str, list[Cell]] = {}
    for cell in study.of(network):
        if cell.first.series != DENSE and not cell.first.control and lost(study, cell) is not None:
            methods.setdefault(cell.first.series, []).append(cell)
    for series, cells in methods.items():
        close = [cell for cell in cells if lost(study, cell) <= CLOSE]
        if not close:
            nearest = min(cells, key=lambda cell: lost(study, cell))
            lines.append(
                f"{network}: no cut by {series} stays within {CLOSE:g} point of the dense "
                f"{points(dense)}; the nearest, {nearest.first.amount}, "
                f"{_change(nearest, dense)}."
            )
            continue
        far = max(close, key=lambda cell: theoretical_speedup(study, cell))
        gain = theoretical_speedup(study, far)
        epochs = f"after {study.epochs(far)} epochs against {study.epochs(dense)}"
        lines.append(
            f"{network}: {series} {far.first.amount} {_change(far, dense)}, {epochs}, "
            f"with {gain:.2f}x fewer effective MACs" + _followed(study, far, gain)
        )
    for cell in study.of(network):
        if cell.first.series == FURTHER and lost(study, cell) is not None:
            epochs = f"to {study.epochs(cell)} epochs against {study.epochs(dense)}"
            lines.append(
                f"{network}: the dense network trained further, {epochs}, {_change(cell, dense)}."
            )
    return lines


def _change(cell: Cell, dense: Cell) -> str:
    differences = cell.minus(dense)
    mean, half = interval(differences)
    many = "points (one seed)"
    if half is not None:
        many = f"± {half:.2f} points (95 %, n={len(differences)})"
    return f"{'gains' if mean > 0 else 'loses'} {abs(mean):.2f} {many}"


def _followed(study: Study, cell: Cell, gain: float) -> str:
    measured = study.timed(cell, "measured_speedup")
    if measured is None:
        return "; its time was not measured."
    verdict = "followed" if keeps_up(measured, gain) else "followed in part"
    if measured <= 1.05:
        verdict = "did not"
    alone = study.timed(cell, "latency_speedup")
    return (
        f". Time {verdict}: {measured:.2f}x the images per second, {alone:.2f}x at batch 1 "
        f"({study.timed_in(cell)})."
    )


def separable_against_standard(study: Study) -> list[str]:
    """Points lost by pruning a separable network, beside those of the standard one."""
    lines = []
    for network in study.networks:
        standard = network.replace(" resnet_de", " resnet")
        if standard == network or standard not in study.networks:
            continue
        ours, theirs = _prunings(study, standard), _prunings(study, network)
        common = [key for key in ours if key in theirs]
        if common:
            more = [lost(study, theirs[key]) - lost(study, ours[key]) for key in common]
            lines.append(
                f"{network} loses more than {standard} in {sum(m > 0 for m in more)} of "
                f"{len(more)} cases of the same amount, {statistics.mean(more):+.2f} points "
                "on average."
            )
        for series in dict.fromkeys(series for series, _ in theirs):
            same = "; ".join(
                f"{key[1]}: {_loss(study, ours[key])} and {_loss(study, theirs[key])}"
                for key in common
                if key[0] == series
            )
            sides = [[c for k, c in side.items() if k[0] == series] for side in (ours, theirs)]
            equal = "; ".join(_at_equal_macs(study, *sides))
            told = []
            if same:
                told.append(f"points lost and MACs: {same}.")
            if equal:
                told.append(f"For equally many times fewer MACs, standard interpolated: {equal}.")
            if told:
                lines.append(f"{standard} and {network}, {series}: {' '.join(told)}")
    return lines or ["No separable network stands beside a standard one of the same depth here."]


def _at_equal_macs(study: Study, ours: list[Cell], theirs: list[Cell]) -> list[str]:
    """The same ratio cuts other shares of the two: losses where equal shares of MACs are gone.

    Those of the standard network are interpolated over the logarithm of its MACs x between the
    amounts of one series, from none on; nothing is said beyond the largest.
    """
    curve = sorted((log(theoretical_speedup(study, cell)), lost(study, cell)) for cell in ours)
    found = []
    for cell in theirs:
        times = theoretical_speedup(study, cell)
        if curve and 0 < log(times) <= curve[-1][0]:
            standard = np.interp(log(times), *zip((0.0, 0.0), *curve, strict=True))
            found.append(f"{times:.2f}x: {standard:.2f} and {lost(study, cell):.2f}")
    return found


def _prunings(study: Study, network: str) -> dict[tuple[str, str], Cell]:
    """Ways of pruning that are no controls, by series and amount."""
    cells = [cell for cell in study.of(network) if cell.first.amount and not cell.first.control]
    return {
        (cell.first.series, cell.first.amount): cell
        for cell in cells
        if lost(study, cell) is not None
    }


def _loss(study: Study, cell: Cell) -> str:
    times, many = theoretical_speedup(study, cell), len(cell.runs)
    return f"{lost(study, cell):.2f} for {times:.2f}x fewer (n={many})"


def theoretical_speedup(study: Study, cell: Cell) -> float | None:
    """How many times fewer MACs than the dense network, if zero weights cost nothing."""
    dense = study.dense(cell.first.network)
    if dense is None:
        return None
    return dense.mean("effective_macs") / cell.mean("effective_macs")


def _smaller(study: Study, cell: Cell) -> bool:
    dense = study.dense(cell.first.network)
    return dense is not None and cell.mean("macs") < 0.99 * dense.mean("macs")


def as_number(amount: str) -> tuple[float, str]:
    """The order of amounts pruned: "0.3" before "0.6"."""
    number = re.search(r"\d+(?:\.\d+)?", amount)
    return (float(number[0]) if number else 0.0), amount
