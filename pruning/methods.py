"""The ways of pruning: what a stage needs to know about each, behind one small interface."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from models import Cost, Group, Spec, channel_groups, cost_of, spec_of

from .allocation import Kept, Limits, allocate, select, solve
from .criteria import score
from .surgery import cut, cut_spec, silence

State = dict[str, Any]  # what a method keeps in the checkpoint; plain types and tensors


class Pruned(NamedTuple):
    """What stage 2 hands over: the network, and the same function in the big network."""

    model: nn.Module
    reference: nn.Module  # the network before, with what was removed silenced
    ratio: float | list[float]  # as asked for, or as a target needed it
    state: State
    groups: list[tuple[str, int, int, str]]  # name, channels before, after, why protected

    @property
    def spec(self) -> Spec:
        """Of the pruned network."""
        return spec_of(self.model)


class Method(NamedTuple):
    """A way of pruning. Only `prune` is needed; the rest takes part in fine-tuning."""

    prune: Callable[[nn.Module, argparse.Namespace, Cost, int], Pruned]
    after_step: Callable[[nn.Module, State, torch.optim.Optimizer], None] | None = None
    after_epoch: Callable[[nn.Module, State, int], dict[str, Any]] | None = None
    finish: Callable[[nn.Module, State], nn.Module] | None = None


def choose(
    model: nn.Module, options: argparse.Namespace, dense: Cost, image_size: int
) -> tuple[float | list[float], Kept, list[tuple[str, int, int, str]]]:
    """The ratio, the kept indices by the options of the command line, a report on every group.

    `dense` is the cost that targets refer to. Raises ValueError for options that do not fit the
    network.
    """
    spec = spec_of(model)
    everything = channel_groups(spec)
    groups, protected = select(everything, options.skip, options.scope)
    if not groups:
        raise ValueError("--skip and --scope leave nothing to prune")
    limits = Limits(options.min_keep, options.round_to)
    scores = score(model, groups, options.criterion)

    def at(ratio: float | list[float]) -> Kept:
        return allocate(groups, scores, ratio, options.allocation, limits)

    ratio = options.ratio
    for name in ("macs", "params"):
        if target := getattr(options, f"target_{name}"):

            def share(ratio: float, name: str = name) -> float:
                cost = cost_of(cut_spec(spec, at(ratio)), image_size)
                return getattr(cost, name) / getattr(dense, name)

            ratio = solve(share, target, name)
    kept = at(ratio)
    return ratio, kept, [_row(group, kept, protected, limits) for group in everything]


def _row(
    group: Group, kept: Kept, protected: dict[str, str], limits: Limits
) -> tuple[str, int, int, str]:
    if group.name in protected:
        return group.name, group.size, group.size, protected[group.name]
    after = len(kept[group.name])
    at_floor = after == limits.floor(group.size) < group.size
    return group.name, group.size, after, "floor (--min-keep)" if at_floor else ""


def prune_once(
    model: nn.Module, options: argparse.Namespace, dense: Cost, image_size: int
) -> Pruned:
    """Cut the channels that score lowest; what is left is an ordinary, smaller network."""
    ratio, kept, rows = choose(model, options, dense, image_size)
    state = {"kept": {name: index.tolist() for name, index in kept.items()}}
    return Pruned(cut(model, kept), silence(model, kept), ratio, state, rows)


METHODS: dict[str, Method] = {
    "l1": Method(prune_once),
}
