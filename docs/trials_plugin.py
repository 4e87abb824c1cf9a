"""A plugin: ways of pruning that were tried, and are not in the product; see choices.md.

    python res50prune.py --plugin docs/trials_plugin.py --method held --ratio 0.6
    python finetune.py --plugin docs/trials_plugin.py --method held --ratio 0.6
    python main.py --plugin docs/trials_plugin.py --method decayed --gradual --target-macs 0.1

held: filters are zeroed once an epoch, as in `soft --schedule he2018`, until half of the epochs
are over. Then the choice is frozen, and filters and BatchNorms are held at zero at every step.
decayed: `l1` while training; filters and BatchNorms shrink before their channel closes.
straight: `soft`, but filters behind closed gates learn as if these were open.
"""

from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Cost, Group
from pruning import METHODS, Task
from pruning.allocation import not_kept
from pruning.filters import Filters
from pruning.gates import EVERY, RAMP, GatedState, read_gated
from pruning.method import FILTER_FLAGS, Measure, cubic
from pruning.selection import as_lists, choose
from pruning.soft import Soft
from pruning.zeroing import SoftState, Zeroing

AHEAD = 0.1  # of a training: how long a channel shrinks before it closes
LEFT = 0.05  # what that leaves of it, if the loss does not object


@torch.no_grad()
def shrink(
    model: nn.Module,
    groups: list[Group],
    kept: dict[str, list[int]],
    factor: float,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Multiply the filters and BatchNorms of all channels but the kept ones, and their momentum."""
    for group in groups:
        gone = not_kept(group.size, kept.get(group.name, range(group.size)))
        for layer, channels in (*group.producers, *group.norms):
            index = torch.tensor(channels)[gone]
            for parameter in model.get_submodule(layer).parameters(recurse=False):
                parameter[index] *= factor
                if (momentum := optimizer.state[parameter].get("momentum_buffer")) is not None:
                    momentum[index] *= factor


@dataclass
class HeldState(SoftState):
    frozen: bool = False


class Held(Zeroing):
    State = HeldState
    flags = FILTER_FLAGS

    def on_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        super().on_step(model, optimizer, step, steps)
        if self.state.pending and self.state.frozen:
            shrink(model, self.groups, self.state.kept, 0.0, optimizer)

    def on_epoch(
        self, model: nn.Module, progress: float, rows: list[dict[str, Any]], measure: Measure
    ) -> dict[str, Any]:
        if not self.state.pending or self.state.frozen:
            return {}
        told = super().on_epoch(model, progress, rows, measure)
        if progress >= 0.5:
            self.state.frozen, self.state.history = True, []
        return {"regrown": told["regrown"], "top1_unmasked": told["top1_unmasked"]}


@dataclass
class DecayedState(GatedState):
    soon: dict[str, list[int]] = field(default_factory=dict)  # what will be left, AHEAD of the ramp


class Decayed(Filters):
    State = DecayedState
    defaults = MappingProxyType({"gradual": True})
    flags = ("target_macs", "target_params", "scope", "min_keep", "round_to", "gradual", "ramp")
    allocations = ("layer", "global", "cost")

    def on_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        super().on_step(model, optimizer, step, steps)
        if not self.gates:
            return
        groups, state = self.gates.groups, self.state
        if step % EVERY == 0:
            start, end = self.config.ramp or RAMP
            share = cubic(max(0.0, ((step + 1) / steps + AHEAD - start) / (end - start)))
            task = Task(Cost(*state.dense_cost), state.image_size)
            closed = {g.name: not_kept(g.size, state.kept[g.name]) for g in groups}
            _, kept, _ = choose(model, self.config, task, share, closed=closed)
            state.soon = as_lists(kept)
        shrink(model, groups, state.soon, LEFT ** (1 / (AHEAD * steps)), optimizer)


def _read_straight(reader: nn.Conv2d | nn.Linear, gate: Tensor, x: Tensor) -> Tensor:
    """What `reader` gives of its gated input; its gradient for `x` is that without the gate."""
    shut = reader.weight.detach() * (1 - gate.detach()).view(-1, *[1] * (reader.weight.dim() - 2))
    if isinstance(reader, nn.Linear):
        passed = F.linear(x, shut)
    else:
        passed = F.conv2d(x, shut, None, reader.stride, reader.padding)
    return read_gated(reader, gate, x) + passed - passed.detach()


class Straight(Soft):
    def on_start(self, model: nn.Module) -> None:
        super().on_start(model)
        for layer, gate in self.gates.by_reader.items() if self.gates else ():
            reader = model.get_submodule(layer)
            reader.forward = partial(_read_straight, reader, gate)


METHODS |= {"straight": Straight, "held": Held, "decayed": Decayed}
