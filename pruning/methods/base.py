"""What the stages need to know about a way of pruning, and what a way of pruning gets from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from models import Cost

from ..allocation import ALLOCATIONS
from ..criteria import CRITERIA, Evidence

State = dict[str, Any]  # what a method keeps in the checkpoint; plain types and tensors
Row = tuple[str, int, int, str]  # group or layer, size before, size after, why protected

FILTER_FLAGS = (
    *("target_macs", "target_params", "target_latency"),
    *("scope", "min_keep", "round_to"),
)


class Task(NamedTuple):
    """What stage 2 gives to a method besides the network."""

    options: argparse.Namespace
    dense: Cost  # of the original network: what targets refer to
    image_size: int
    evidence: Evidence = Evidence()
    previous: State | None = None  # what earlier pruning left in the checkpoint
    latency: Callable[[nn.Module], float] | None = None  # as a fraction of the dense network's
    sensitivity: dict[str, dict[str, float]] | None = None  # group -> ratio -> accuracy drop


class Pruned(NamedTuple):
    """What a method gives back in stage 2."""

    model: nn.Module  # handed over
    network: nn.Module  # whose accuracy and cost are reported: `model` as it will be in the end
    reference: nn.Module  # the same function as `network`, in a network of the old size
    ratio: float | list[float]  # as asked for, or as a target needed it
    state: State
    rows: list[Row]


class Method(NamedTuple):
    """A way of pruning. Only `prune` is needed; the rest takes part in fine-tuning.

    before_step(model, state) sees the gradients of each batch, and may change them;
    after_step(model, state, optimizer, step, steps) runs after each of the `steps` updates;
    after_epoch(model, state, epoch, epochs, rows, measure) runs before the evaluation, may look
    back at the log `rows`, and returns what joins the new row; `measure(network)` gives top-1 and
    loss. finish(model, state) gives the network as it would be handed over now, and its state.

    What a method still has to do stands in the state under "plan"; `finish` takes it out. The
    hooks of a method that is `planned` are for carrying its plan out, and rest without one.
    """

    prune: Callable[[nn.Module, Task], Pruned]
    before_step: Callable[[nn.Module, State], None] | None = None
    after_step: Callable[[nn.Module, State, torch.optim.Optimizer, int, int], None] | None = None
    after_epoch: Callable[..., dict[str, Any]] | None = None
    finish: Callable[[nn.Module, State], tuple[nn.Module, State]] | None = None
    defaults: Mapping[str, Any] = MappingProxyType({})  # of its flags, unlike the common ones
    flags: tuple[str, ...] = FILTER_FLAGS  # those that mean something to it
    criteria: tuple[str, ...] = tuple(CRITERIA)
    allocations: tuple[str, ...] = ALLOCATIONS
    planned: bool = False
    settle: bool = False  # whether what `finish` gives needs BatchNorm's statistics anew
    from_scratch: bool = False  # whether it can prune while a new network is trained
