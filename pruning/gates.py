"""Pruning while training: channels close on a ramp, then they are cut out.

A gate multiplies what a layer reads. A closed channel reaches no reader, so the network that is
trained is at every step the one that would be cut out then, in whatever mode its BatchNorms are.
Zeroing filters instead would not do: BatchNorm makes a filter that grows back from nothing a
full-strength feature within a few steps.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from models import Cost, Group, channel_groups, spec_of

from .allocation import Kept, best, not_kept, select
from .criteria import Calibration, Scores, score
from .masks import apply_masks, cut_masks
from .method import Measure, Method, Pruned, State, Task, cubic
from .selection import as_lists, choose, first_to_go
from .surgery import cut, mask_channels

RAMP = (0.1, 0.5)  # its start and end, as fractions of the training
EVERY = 32  # steps between two choices
MEMORY = 0.99  # of the average of the gates' effects, for each step


def read_gated(reader: nn.Conv2d | nn.Linear, gate: Tensor, x: Tensor) -> Tensor:
    """What `reader` gives of its gated input: a factor on what it reads is one on its weights."""
    weight = reader.weight * gate.view(-1, *[1] * (reader.weight.dim() - 2))
    if isinstance(reader, nn.Linear):
        return F.linear(x, weight, reader.bias)
    return F.conv2d(x, weight, reader.bias, reader.stride, reader.padding)


class Gates:
    """Gates of some channel groups of a network, all open at first.

    They are neither parameters nor buffers of the network, and to be put in before it is compiled.
    With `watched`, a backward pass tells what each gate does to the loss.
    """

    def __init__(self, model: nn.Module, groups: list[Group], watched: bool = True) -> None:
        self.groups = groups
        self.by_reader: dict[str, Tensor] = {}  # by the layer that reads: a gate for each input
        # Of each group the gates, and where its channels are in them.
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {group.name: [] for group in groups}
        for group in groups:
            for layer, channels in group.consumers:
                reader = model.get_submodule(layer)
                if layer not in self.by_reader:
                    gate = torch.ones(reader.weight.shape[1], device=reader.weight.device)
                    self.by_reader[layer] = gate.requires_grad_(watched)
                    reader.forward = partial(read_gated, reader, gate)
                gate = self.by_reader[layer]
                index = torch.tensor(channels, device=gate.device)
                self._parts[group.name].append((gate, index))

    @torch.no_grad()
    def close(self, kept: Kept) -> None:
        """Close all channels but the kept ones."""
        for group in self.groups:
            gone = not_kept(group.size, kept[group.name])
            for gate, index in self._parts[group.name]:
                gate[index] = (~gone).to(gate)

    def effects(self) -> Scores:
        """The gradients (size,) of the gates of each group, by its name, since the last call.

        To first order the effect on the loss of closing a channel, or of opening a closed one.
        The same in all processes that train together.
        """
        found = torch.cat(
            [sum(gate.grad[index] for gate, index in parts) for parts in self._parts.values()]
        )
        if dist.is_initialized():
            dist.all_reduce(found)
        for gate in self.by_reader.values():
            gate.grad = None
        parts = found.split([group.size for group in self.groups])
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}


@dataclass
class GatedState(State):
    """Also what choosing while training needs."""

    counts: dict[str, int] = field(default_factory=dict)  # final widths, where known from the start
    image_size: int = 32
    dense_cost: list[int] = field(default_factory=list)  # parameters and MACs, for targets
    effects: Scores = field(default_factory=dict)  # squared, averaged over time


class Gated(Method):
    """Close channels while the network trains; cut them out where the ramp ends."""

    State = GatedState
    allocations = ("layer", "global", "cost", "search")
    revives = False  # whether what is closed may open again

    def prune(self, model: nn.Module, task: Task) -> Pruned:
        """Set the pruning up; `network` is what pruning now, at once, would give."""
        ratio, kept, rows = choose(model, self.config, task)
        everything = {g.name: list(range(g.size)) for g in channel_groups(spec_of(model))}
        counts = {}
        if self.config.target_latency or self.config.allocation == "search":
            # This took a clock, or images. Training decides only which channels they are.
            counts = {name: len(index) for name, index in kept.items()}
        how = counts, task.image_size, list(task.dense)
        self.state = self.State(everything, dict(task.masks), True, *how)
        return Pruned(model, cut(model, kept), mask_channels(model, kept), ratio, rows)

    def on_start(self, model: nn.Module) -> None:
        self.gates, self.opened, self.closed = None, 0, 0
        if self.state.pending:
            groups, _ = select(channel_groups(spec_of(model)), self.config.skip, self.config.scope)
            self.gates = Gates(model, groups, watched=self.config.criterion == "gate")
            self.gates.close(self.state.kept_channels())

    def on_gradients(self, model: nn.Module) -> None:
        if self.gates and self.config.criterion == "gate":
            known = self.state.effects
            for name, effect in self.gates.effects().items():
                new = (1 - MEMORY) * effect.square()
                known[name] = MEMORY * known[name].to(new.device) + new if name in known else new

    def on_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Hold the masks; choose anew every few steps on the ramp."""
        apply_masks(model, self.state.masks, optimizer)
        start, end = self.config.ramp or RAMP
        done = (step + 1) / steps
        if self.gates and step % EVERY == 0 and start < done:
            self._choose(model, cubic((done - start) / (end - start)))

    def _choose(self, model: nn.Module, share: float) -> None:
        """Close what is the least important now, so far as the `share` of the final amount asks."""
        state, groups = self.state, self.gates.groups
        calibration = Calibration(self.config.seed, effects=state.effects)
        scores = score(model, groups, self.config.criterion, calibration)
        before = {g.name: not_kept(g.size, state.kept[g.name]) for g in groups}
        closed = {} if self.revives else before
        if state.counts:
            scores = first_to_go(scores, closed)
            kept = {
                g.name: best(
                    scores[g.name], round(g.size - share * (g.size - state.counts[g.name]))
                )
                for g in groups
            }
        else:
            task = Task(Cost(*state.dense_cost), state.image_size)
            _, kept, _ = choose(model, self.config, task, share, scores, closed)
        if not self.revives:  # a target that was met from below may ask for less than is closed
            kept = {name: index[~before[name][index]] for name, index in kept.items()}
        self.gates.close(kept)
        state.kept |= as_lists(kept)
        for group in groups:
            now = not_kept(group.size, kept[group.name])
            self.opened += int((before[group.name] & ~now).sum())
            self.closed += int((now & ~before[group.name]).sum())

    def on_epoch(
        self, model: nn.Module, progress: float, rows: list[dict[str, Any]], measure: Measure
    ) -> dict[str, Any]:
        """How much is closed, and how many channels changed sides since the last epoch."""
        if not self.gates:
            return {}
        if progress >= (self.config.ramp or RAMP)[1]:
            self._choose(model, 1.0)
        size = sum(group.size for group in self.gates.groups)
        left = sum(len(self.state.kept[group.name]) for group in self.gates.groups)
        moved = {"flipped": self.opened + self.closed, "regrown": self.opened}
        self.opened = self.closed = 0
        return {"pruned_ratio": 1 - left / size, **moved}

    def to_cut(self, model: nn.Module, progress: float) -> Kept:
        """What is closed, once the ramp has ended."""
        if not self.gates or progress < (self.config.ramp or RAMP)[1]:
            return {}
        kept, self.gates = self.state.kept_channels(), None
        self.state = self.State(self.state.kept, cut_masks(spec_of(model), kept, self.state.masks))
        return kept
