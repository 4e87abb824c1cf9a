"""Which channels go: scores, an amount and what protects a group become kept indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models import Group, Span, Spec, channel_groups, cost_of, layer_costs, spec_of

from .allocation import Kept, Limits, allocate, best, fast_multiple, select, solve
from .config import FAST, PruningConfig, method_class
from .criteria import Calibration, Scores, normalize_scores, score
from .search import stage_ratios
from .surgery import cut, cut_spec

if TYPE_CHECKING:
    from .method import Row, Task

STEEP = 1.5  # power of the cost that `--allocation cost` divides by; 1 gives equal ratios
WORTH = {"inner": 1, "residual": 2}  # of a channel; a residual one carries what all blocks add


def choose(
    model: nn.Module,
    config: PruningConfig,
    task: Task,
    share: float = 1.0,
    scores: Scores | None = None,
    closed: dict[str, Tensor] | None = None,
) -> tuple[float | list[float], Kept, list[Row]]:
    """The ratio, the kept indices, and a report on every group.

    A `share` below 1 goes only so far on the way from the network as it is to the amount that the
    config asks for. `scores` are those of the config's criterion unless they are given; `closed`
    (size,) says by group which channels go first whatever their score.
    Raises ValueError for a config that does not fit the network.
    """
    spec = spec_of(model)
    everything = channel_groups(spec)
    groups, protected = select(everything, config.skip, config.scope)
    if not groups:
        raise ValueError("--skip and --scope leave nothing to prune")
    limits = Limits(config.min_keep, config.round_to or 1)
    counted = "params" if config.target_params else "macs"
    if scores is None:
        scores = score(model, groups, config.criterion, Calibration(config.seed, task.batches))
    if config.allocation == "global":
        scores = normalize_scores(scores, config.criterion)
    scores = first_to_go(scores, closed or {})
    worth = scores
    if config.allocation == "cost":  # the norms say how many channels go, the scores which
        norms = scores
        if config.criterion != "l1":
            norms = first_to_go(score(model, groups, "l1"), closed or {})
        cost = cost_of_a_channel(spec, groups, task.image_size, counted)
        worth = {
            g.name: shares(norms[g.name]) * (WORTH[g.scope] / cost[g.name]) ** STEEP for g in groups
        }

    def at(ratio: float | Sequence[float]) -> Kept:
        kept = allocate(groups, worth, ratio, config.allocation, limits, task.sensitivity)
        return {name: best(scores[name], len(index)) for name, index in kept.items()}

    def left(name: str, ratio: float | Sequence[float]) -> float:
        """The fraction of the dense network's parameters or MACs that a ratio leaves."""
        cost = cost_of(cut_spec(spec, at(ratio), everything), task.image_size)
        return getattr(cost, name) / getattr(task.dense, name)

    ratio = config.ratio
    if ratio is not None:
        ratio = tuple(share * r for r in ratio) if isinstance(ratio, tuple) else share * ratio
    for name in ("macs", "params"):
        if target := getattr(config, f"target_{name}"):
            target += (1 - share) * (left(name, 0.0) - target)
            ratio = solve(partial(left, name), target, name)
    if config.target_latency:
        if task.latency is None:
            raise ValueError("--target-latency needs a trained network: see res50prune.py")

        @cache  # a second look at the clock would say something else
        def latency(ratio: float) -> float:
            return task.latency(cut(model, at(ratio)))

        ratio = solve(latency, config.target_latency, "latency", precision=0.01, slack=0.05)
    if config.allocation == "search":  # at the same cost
        if task.accuracy is None:
            raise ValueError("--allocation search needs a trained network: see res50prune.py")
        cost_at, target = partial(left, counted), left(counted, ratio)

        def accuracy_at(ratios: Sequence[float]) -> float:
            return task.accuracy(cut(model, at(ratios)))

        ratio = stage_ratios(groups[0].stages, cost_at, target, accuracy_at, config.seed)
    kept = at(ratio)
    told = list(ratio) if isinstance(ratio, tuple) else ratio
    return told, kept, [_row(group, kept, protected, limits) for group in everything]


def shares(scores: Tensor) -> Tensor:
    """The share (size,) of each channel in the sum of its own score and all higher ones.

    So a channel is worth more, the fewer are left beside it. Lee et al. 2021 (arXiv 2010.07611),
    equation 1, do this with squared weights.
    """
    values, order = torch.sort(scores, descending=True, stable=True)
    own = values / values.clamp_min(0).cumsum(0).clamp_min(1e-30)
    return torch.empty_like(scores).scatter_(0, order, own)


def first_to_go(scores: Scores, closed: dict[str, Tensor]) -> Scores:
    """The scores, below all others for the channels that are `closed` (size,) by group."""
    return scores | {
        name: scores[name].masked_fill(gone, -torch.inf) for name, gone in closed.items()
    }


def cost_of_a_channel(
    spec: Spec, groups: list[Group], image_size: int, counted: str = "macs"
) -> dict[str, float]:
    """MACs (or "params") of one channel of each group, for each convolution that produces it."""
    layers = {row.name: row for row in layer_costs(spec, image_size)}

    def share(spans: Sequence[Span], axis: int) -> float:
        rows = [layers[span.layer] for span in spans]
        return sum(getattr(row, counted) / row.shape[axis] for row in rows)

    found = {}
    for group in groups:
        whole = share((*group.producers, *group.passthrough), 0) + share(group.consumers, 1)
        found[group.name] = whole / len(group.producers)
    return found


def with_fast_widths(config: PruningConfig, dense: Spec) -> PruningConfig:
    """The config; with a target, and if it says nothing of widths, these are rounded to be fast.

    Where the narrowest group is too thin for the whole of that, only for a latency.
    """
    targets = config.target_macs, config.target_params, config.target_latency
    if config.round_to or not any(targets) or "round_to" not in method_class(config).flags:
        return config
    groups, _ = select(channel_groups(dense), config.skip, config.scope)
    multiple = fast_multiple(groups)
    usual = multiple == FAST or (config.target_latency and multiple > 1)
    return replace(config, round_to=multiple) if usual else config


def _row(group: Group, kept: Kept, protected: dict[str, str], limits: Limits) -> Row:
    if group.name in protected:
        return group.name, group.size, group.size, protected[group.name]
    after = len(kept[group.name])
    at_floor = after == limits.floor(group.size) < group.size
    return group.name, group.size, after, "floor (--min-keep)" if at_floor else ""


def as_lists(kept: Kept) -> dict[str, list[int]]:
    """Kept indices as plain data for a checkpoint."""
    return {name: index.tolist() for name, index in kept.items()}
