"""A plugin: two ways of pruning that were tried, and are not in the product; see choices.md.

    python res50prune.py --plugin docs/trials_plugin.py --method held --ratio 0.6
    python finetune.py --plugin docs/trials_plugin.py --method held --ratio 0.6
    python main.py --plugin docs/trials_plugin.py --method decayed --gradual --target-macs 0.1

held: filters are zeroed once an epoch, as in `soft --schedule he2018`. At half-time the choice is
frozen, and from there on filters and BatchNorms are held at zero. decayed: `l1` while training;
filters and BatchNorms shrink before their channel closes.
"""

import math
from types import MappingProxyType

import torch
from torch import nn

from models import Cost, Group
from pruning import METHODS, Task
from pruning.allocation import Kept, not_kept
from pruning.filters import Filters
from pruning.gates import EVERY, RAMP
from pruning.method import cubic
from pruning.selection import choose
from pruning.zeroing import Zeroing

AHEAD = 0.1  # of a training: how long a channel shrinks before it closes
LEFT = 0.05  # what that leaves of it, if the loss does not object


@torch.no_grad()
def shrink(
    model: nn.Module,
    groups: list[Group],
    kept: Kept | dict[str, list[int]],
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


class Held(Zeroing):
    def on_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        super().on_step(model, optimizer, step, steps)
        if self.state.pending and step >= steps / 2:
            shrink(model, self.groups, self.state.kept, 0.0, optimizer)

    def on_epoch(self, model: nn.Module, progress: float, rows: list, measure: object) -> dict:
        return super().on_epoch(model, progress, rows, measure) if progress <= 0.5 else {}


class Decayed(Filters):
    defaults = MappingProxyType({"gradual": True})

    def on_start(self, model: nn.Module) -> None:
        super().on_start(model)
        self.soon: Kept = {}  # what will be left, AHEAD of the ramp

    def on_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        super().on_step(model, optimizer, step, steps)
        if not self.gates:
            return
        groups, state = self.gates.groups, self.state
        if step % EVERY == 0:
            start, end = self.config.ramp or RAMP
            soon = ((step + 1) / steps + AHEAD - start) / (end - start)
            task = Task(Cost(*state.dense_cost), state.image_size)
            closed = {g.name: not_kept(g.size, state.kept[g.name]) for g in groups}
            _, self.soon, _ = choose(model, self.config, task, cubic(max(0.0, soon)), closed=closed)
        shrink(model, groups, self.soon, math.exp(math.log(LEFT) / (AHEAD * steps)), optimizer)


METHODS |= {"held": Held, "decayed": Decayed}
