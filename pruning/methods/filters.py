"""`l1`: cut whole filters once, then train the smaller network (Li et al. 2017)."""

from __future__ import annotations

from functools import cache

from torch import nn

from models import Group, channel_groups, cost_of, spec_of

from ..allocation import Kept, Limits, allocate, select, solve
from ..criteria import comparable, score
from ..surgery import cut, cut_spec, silence
from .base import Method, Pruned, Row, State, Task
from .masks import cut_masks, hold_masks, inherited


def choose(model: nn.Module, task: Task) -> tuple[float | list[float], Kept, list[Row]]:
    """The ratio, the kept indices, and a report on every group, by the options of the task.

    Raises ValueError for options that do not fit the network.
    """
    options, spec = task.options, spec_of(model)
    everything = channel_groups(spec)
    groups, protected = select(everything, options.skip, options.scope)
    if not groups:
        raise ValueError("--skip and --scope leave nothing to prune")
    limits = Limits(options.min_keep, options.round_to or 1)
    scores = score(model, groups, options.criterion, task.evidence)
    if options.allocation == "global":
        scores = comparable(scores, options.criterion)

    def at(ratio: float | list[float]) -> Kept:
        return allocate(groups, scores, ratio, options.allocation, limits, task.sensitivity)

    ratio = options.ratio
    for name in ("macs", "params"):
        if target := getattr(options, f"target_{name}"):

            def share(ratio: float, name: str = name) -> float:
                cost = cost_of(cut_spec(spec, at(ratio)), task.image_size)
                return getattr(cost, name) / getattr(task.dense, name)

            ratio = solve(share, target, name)
    if options.target_latency:
        if task.latency is None:
            raise ValueError("--target-latency needs a trained network: see res50prune.py")

        @cache  # a second look at the clock would say something else
        def latency(ratio: float) -> float:
            return task.latency(cut(model, at(ratio)))

        ratio = solve(latency, options.target_latency, "latency", precision=0.01, slack=0.05)
    kept = at(ratio)
    return ratio, kept, [_row(group, kept, protected, limits) for group in everything]


def _row(group: Group, kept: Kept, protected: dict[str, str], limits: Limits) -> Row:
    if group.name in protected:
        return group.name, group.size, group.size, protected[group.name]
    after = len(kept[group.name])
    at_floor = after == limits.floor(group.size) < group.size
    return group.name, group.size, after, "floor (--min-keep)" if at_floor else ""


def as_lists(kept: Kept) -> dict[str, list[int]]:
    """Kept indices as plain data for a checkpoint."""
    return {name: index.tolist() for name, index in kept.items()}


def prune(model: nn.Module, task: Task) -> Pruned:
    """Cut the channels that score lowest; what is left is an ordinary, smaller network."""
    ratio, kept, rows = choose(model, task)
    slim = cut(model, kept)
    state: State = {"kept": as_lists(kept), **inherited(task.previous)}
    if "masks" in state:
        state["masks"] = cut_masks(spec_of(model), kept, state["masks"])
    return Pruned(slim, slim, silence(model, kept), ratio, state, rows)


METHOD = Method(prune, after_step=hold_masks)
