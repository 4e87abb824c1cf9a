"""How many channels may each group lose, and which? Scores and a target become kept indices."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models import Group

from .config import FAST

Kept = dict[str, Tensor]  # group name -> indices of the channels that stay, ascending


class Limits(NamedTuple):
    """What no group may go below. `min_keep` below 1 is a fraction of the group."""

    min_keep: float = 1
    round_to: int = 1

    def floor(self, size: int) -> int:
        """The smallest number of channels that a group of `size` may keep."""
        least = keep_count(size, 1 - self.min_keep) if self.min_keep < 1 else int(self.min_keep)
        return min(size, self.round_to * max(1, math.ceil(least / self.round_to)))

    def fit(self, count: int, size: int) -> int:
        """`count` moved to the nearest allowed number of channels; a whole group stays whole."""
        if count >= size:
            return size
        rounded = self.round_to * math.floor(count / self.round_to + 0.5)
        return min(size, max(self.floor(size), rounded))


NO_LIMITS = Limits()


def keep_count(size: int, ratio: float) -> int:
    """int(size * (1 - ratio)) as in Li et al. 2017, exact where the product is whole."""
    return int(round(size * (1 - ratio), 6))


def fast_multiple(groups: Sequence[Group]) -> int:
    """What widths should be multiples of to be fast, no more than a quarter of a small group.

    16 channels fill a vector register of AVX-512, half a row of an AMX tile, and twice what a
    tensor core reads at once. The same on all machines: a command gives one network everywhere.
    The middles of squeeze-and-excitation do not count: they work on single pixels.
    """
    smallest = min((group.size for group in groups if group.norms), default=4)
    return 1 << max(1, min(FAST, smallest // 4)).bit_length() - 1  # a power of two


def select(groups: list[Group], names: Sequence[str], scope: str) -> tuple[list[Group], dict]:
    """Split off the groups that may be cut from those protected by `names` or by `scope`.

    A name stands for a stage, a block, a layer or a group ("layer1", "layer1.7", "layer1.7.conv1",
    "layer1.residual"), and protects every group that has a channel there. Returns the groups to
    cut, and the reasons for the others by group name. Raises ValueError for a name that matches
    nothing.
    """
    skipped = matches({g.name: [g.name, *g.layers] for g in groups}, names)
    protected = {g.name: "--scope inner" for g in groups if scope == "inner" != g.scope} | skipped
    return [g for g in groups if g.name not in protected], protected


def matches(places: dict[str, list[str]], skip: Sequence[str]) -> dict[str, str]:
    """Of the names in `places`, those with a place that an entry of `skip` covers; the reason.

    Raises ValueError for an entry that covers nothing.
    """
    protected, unused = {}, set(skip)
    for name, where in places.items():
        for entry in skip:
            if any(place == entry or place.startswith(entry + ".") for place in where):
                protected[name] = f"--skip {entry}"
                unused.discard(entry)
    if unused:
        some = ", ".join(list(places)[:4])
        raise ValueError(f"--skip {' '.join(sorted(unused))}: no such name; there are {some}, ...")
    return protected


def allocate(
    groups: list[Group],
    scores: dict[str, Tensor],
    ratio: float | Sequence[float],
    allocation: str = "layer",
    limits: Limits = NO_LIMITS,
    sensitivity: dict[str, dict[str, float]] | None = None,
) -> Kept:
    """Kept indices of each group when the fraction `ratio` of the channels is removed.

    "layer" removes it from every group (a sequence: one ratio per stage); "global" removes it
    from all groups together, lowest scores first (see `normalize_scores`); "sensitivity" removes
    from each group as much as costs the same accuracy by itself (group -> ratio -> drop).
    Ties go to the lower index. Raises ValueError if the ratios do not fit.
    """
    if allocation not in ("layer", "search") and isinstance(ratio, Sequence):
        raise ValueError("one ratio per stage needs --allocation layer")
    if allocation == "sensitivity":
        if sensitivity is None:
            raise ValueError("--allocation sensitivity needs images: see res50prune.py")
        counts = _equal_drop_counts(groups, sensitivity, ratio)
    elif allocation in ("global", "cost"):
        counts = _global_counts(groups, scores, ratio, limits)
    else:
        counts = {g.name: keep_count(g.size, _of_stage(ratio, g)) for g in groups}
    return {g.name: best(scores[g.name], limits.fit(counts[g.name], g.size)) for g in groups}


def best(scores: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the `count` highest scores; of equal ones the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values


def not_kept(size: int, kept: Tensor | list[int]) -> Tensor:
    """True (size,) for the channels that are not among the kept indices."""
    gone = torch.ones(size, dtype=torch.bool)
    gone[kept] = False
    return gone


def _of_stage(ratio: float | Sequence[float], group: Group) -> float:
    if not isinstance(ratio, Sequence):
        return ratio
    if len(ratio) != group.stages:
        stages = f"the network has {group.stages} stages"
        raise ValueError(f"--ratio has {len(ratio)} values, but {stages}")
    return ratio[group.stage - 1]


def _global_counts(
    groups: list[Group], scores: dict[str, Tensor], ratio: float, limits: Limits
) -> dict[str, int]:
    total = sum(g.size for g in groups)
    guarded = []
    for group in groups:
        own = scores[group.name].clone()
        own[best(own, limits.floor(group.size))] = float("inf")  # the floor survives any cut
        guarded.append(own)
    order = torch.sort(torch.cat(guarded), stable=True).indices
    removable = sum(g.size - limits.floor(g.size) for g in groups)
    removed = order[: min(total - keep_count(total, ratio), removable)]
    owners = torch.cat([torch.full((g.size,), i) for i, g in enumerate(groups)])
    losses = torch.bincount(owners[removed], minlength=len(groups)).tolist()
    return {g.name: g.size - loss for g, loss in zip(groups, losses, strict=True)}


def _equal_drop_counts(
    groups: list[Group], sensitivity: dict[str, dict[str, float]], ratio: float
) -> dict[str, int]:
    """Counts at the one accuracy drop at which the fraction `ratio` of all channels goes."""
    curves = {g.name: _rising(sensitivity[g.name]) for g in groups}
    drops = np.unique([drop for rising, _ in curves.values() for drop in rising])  # the corners
    removed = sum(g.size * np.interp(drops, *curves[g.name]) for g in groups)
    drop = np.interp(ratio * sum(g.size for g in groups), removed, drops)
    return {g.name: keep_count(g.size, np.interp(drop, *curves[g.name])) for g in groups}


def _rising(drops: dict[str, float]) -> tuple[list[float], list[float]]:
    """Drops and ratios of a curve that rises throughout, from (0, 0) to everything cut.

    Measured drops are noisy and may fall; a tiny slope lets flat parts be inverted.
    """
    points = sorted((float(ratio), drop) for ratio, drop in drops.items())
    xs, ys = [0.0], [0.0]
    for x, drop in [*points, (1.0, 100.0)]:
        xs.append(x)
        ys.append(max(drop, ys[-1] + 1e-3 * (x - xs[-2])))
    return ys, xs


def solve(
    cost_at: Callable[[float], float],
    target: float,
    name: str,
    precision: float = 1e-6,
    slack: float = 0.0,
) -> float:
    """The ratio at which `cost_at(ratio)`, a fraction that falls with the ratio, meets `target`.

    Bisection down to `precision`; of the two sides the nearer one. Raises ValueError with the
    reachable range if the target lies outside it (by more than `slack`, if costs are measured).
    """
    low, high = 0.0, 1.0
    most, least = cost_at(low), cost_at(high)
    if not least * (1 - slack) <= target <= most * (1 + slack):
        raise ValueError(
            f"--target-{name} {target:g} cannot be reached: {least:.4f} to {most:.4f} can; "
            "--scope, --skip, --min-keep and --round-to set these limits"
        )
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (middle, high) if cost_at(middle) >= target else (low, middle)
    return min((low, high), key=lambda ratio: abs(cost_at(ratio) - target))
