"""How many channels may each group lose, and which? Scores and a target become kept indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models import Group

ALLOCATIONS = ("layer", "global")
Kept = dict[str, Tensor]  # group name -> indices of the channels that stay, ascending


class Limits(NamedTuple):
    """What no group may go below. `min_keep` below 1 is a fraction of the group."""

    min_keep: float = 1
    round_to: int = 1

    def floor(self, size: int) -> int:
        """The smallest number of channels that a group of `size` may keep."""
        least = keep_count(size, 1 - self.min_keep) if self.min_keep < 1 else int(self.min_keep)
        return min(size, max(1, least))

    def fit(self, count: int, size: int) -> int:
        """`count` moved to the nearest allowed number of channels."""
        rounded = self.round_to * max(1, round(count / self.round_to))
        return min(size, max(self.floor(size), rounded))


NO_LIMITS = Limits()


def keep_count(size: int, ratio: float) -> int:
    """int(size * (1 - ratio)) as in Li et al. 2017, exact where the product is whole."""
    return int(round(size * (1 - ratio), 6))


def select(groups: list[Group], names: Sequence[str], scope: str) -> tuple[list[Group], Kept]:
    """Split off the groups that may be cut from those protected by `names` or by `scope`.

    A name protects a whole stage, a block or one group ("layer1", "layer1.7",
    "layer1.7.conv1"). Returns the groups to cut, and the reasons for the others by group name.
    Raises ValueError for a name that matches nothing.
    """
    chosen, protected, unused = [], {}, set(names)
    for group in groups:
        matching = [n for n in names if group.name == n or group.name.startswith(n + ".")]
        unused -= set(matching)
        if matching:
            protected[group.name] = f"--skip {matching[0]}"
        elif scope == "inner" and group.scope != "inner":
            protected[group.name] = "--scope inner"
        else:
            chosen.append(group)
    if unused:
        some = ", ".join(g.name for g in groups[:4])
        raise ValueError(f"--skip {' '.join(sorted(unused))}: no such group; they are {some}, ...")
    return chosen, protected


def allocate(
    groups: list[Group],
    scores: dict[str, Tensor],
    ratio: float | Sequence[float],
    allocation: str = "layer",
    limits: Limits = NO_LIMITS,
) -> Kept:
    """Kept indices of each group when the fraction `ratio` of the channels is removed.

    "layer" removes it from every group (a sequence: one ratio per stage); "global" removes it
    from all groups together, lowest scores first, each group's scores divided by their mean so
    that groups of different fan-in compare. Ties go to the lower index. Raises ValueError if
    the ratios do not fit.
    """
    if allocation == "global":
        if not isinstance(ratio, float):
            raise ValueError("one ratio per stage needs --allocation layer")
        counts = _global_counts(groups, scores, ratio, limits)
    else:
        counts = {g.name: keep_count(g.size, _of_stage(ratio, g, groups)) for g in groups}
    return {g.name: best(scores[g.name], limits.fit(counts[g.name], g.size)) for g in groups}


def best(scores: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the `count` highest scores; of equal ones the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values


def _of_stage(ratio: float | Sequence[float], group: Group, groups: list[Group]) -> float:
    if isinstance(ratio, float):
        return ratio
    stages = max(g.stage for g in groups)
    if len(ratio) != stages:
        raise ValueError(f"--ratio has {len(ratio)} values, but the network has {stages} stages")
    return ratio[group.stage - 1]


def _global_counts(
    groups: list[Group], scores: dict[str, Tensor], ratio: float, limits: Limits
) -> dict[str, int]:
    total = sum(g.size for g in groups)
    normalised = []
    for group in groups:
        own = scores[group.name] / scores[group.name].mean().clamp_min(1e-12)
        own = own.clone()
        own[best(own, limits.floor(group.size))] = float("inf")  # the floor survives any cut
        normalised.append(own)
    order = torch.sort(torch.cat(normalised), stable=True).indices
    removable = sum(g.size - limits.floor(g.size) for g in groups)
    removed = order[: min(total - keep_count(total, ratio), removable)]
    owners = torch.cat([torch.full((g.size,), i) for i, g in enumerate(groups)])
    losses = torch.bincount(owners[removed], minlength=len(groups)).tolist()
    return {g.name: g.size - loss for g, loss in zip(groups, losses, strict=True)}


def solve(cost_at: Callable[[float], float], target: float, name: str) -> float:
    """The ratio at which `cost_at(ratio)`, a fraction that falls with the ratio, meets `target`.

    Bisection down to the granularity of the widths; of the two sides the nearer one. Raises
    ValueError with the reachable range if the target lies outside it.
    """
    low, high = 0.0, 1.0
    most, least = cost_at(low), cost_at(high)
    if not least <= target <= most:
        raise ValueError(
            f"--target-{name} {target:g} cannot be reached: {least:.4f} to {most:.4f} can"
        )
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if cost_at(middle) >= target else (low, middle)
    return min((low, high), key=lambda ratio: abs(cost_at(ratio) - target))
