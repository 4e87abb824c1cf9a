"""What a way of pruning is: the one class that the stages and the training loop know."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from models import Cost, Spec, spec_of

from .allocation import Kept
from .config import ALLOCATIONS, METHODS, PruningConfig, method_class
from .criteria import CRITERIA, Batches
from .masks import Masks, apply_masks, cut_masks
from .surgery import cut

Row = tuple[str, int, int, str]  # group or layer, size before, size after, why protected
Measure = Callable[[nn.Module], tuple[float, float]]  # top-1 in percent, loss

FILTER_FLAGS = ("target_macs", "target_params", "target_latency", "scope", "min_keep", "round_to")


def cubic(t: float) -> float:
    """Share of the final amount after the fraction t of a ramp: 1 - (1 - t)^3.

    Zhu & Gupta 2017 (arXiv 1710.01878), equation 1, from an initial sparsity of 0.
    """
    return 1 - (1 - min(1.0, t)) ** 3


@dataclass
class State:
    """What a method carries from stage to stage: plain types and tensors, saved by field name."""

    kept: dict[str, list[int]] = field(default_factory=dict)  # group name -> kept channels
    masks: Masks = field(default_factory=dict)  # of single weights
    pending: bool = False  # whether the pruning is still to be done, by a training

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> State:
        """The state that `vars` described, but for fields of other versions or methods."""
        known = {own.name for own in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def kept_channels(self) -> Kept:
        """`kept` as indices."""
        return {name: torch.tensor(index) for name, index in self.kept.items()}

    def figures(self) -> dict[str, Any]:
        """What a result tells of it."""
        return {}


@dataclass(frozen=True)
class Task:
    """What stage 2 gives to a method besides the network."""

    dense: Cost  # of the original network: what targets refer to
    image_size: int = 32
    batches: Batches | None = None  # calibration data: training images, for a criterion to see
    masks: Masks = field(default_factory=dict)  # that an earlier pruning left
    latency: Callable[[nn.Module], float] | None = None  # as a fraction of the dense network's
    accuracy: Callable[[nn.Module], float] | None = None  # on training images, recalibrated before
    sensitivity: Mapping[str, Mapping[str, float]] | None = None  # group -> ratio -> drop


class Pruned(NamedTuple):
    """What a method gives back in stage 2."""

    model: nn.Module  # handed over
    network: nn.Module  # whose accuracy and cost are reported: `model` as it will be in the end
    reference: nn.Module  # the same function as `network`, in a network of the old size
    ratio: float | list[float]  # as asked for, or as a target needed it
    rows: list[Row]


class Method:
    """A way of pruning. Only `prune` is needed; the other functions take part in training.

    A training calls `on_start` first, `on_gradients` before each update, `on_step` after it,
    `on_epoch` and `to_cut` before each evaluation, and evaluates and hands over what `finish`
    gives. Weight masks in the state are held throughout. In training, a method whose state is not
    `pending` has nothing left to do but that.
    """

    State: type[State] = State
    defaults: Mapping[str, Any] = MappingProxyType({})  # of the config, unlike the common ones
    flags: tuple[str, ...] = FILTER_FLAGS  # of those that only some methods have, its own
    criteria: Mapping[str, Any] = CRITERIA
    unfit: tuple[str, ...] = ()  # criteria that it cannot use
    allocations: tuple[str, ...] = ALLOCATIONS
    recalibrates: bool = False  # whether BatchNorm's statistics do not fit what `finish` gives

    @classmethod
    def variant(cls, schedule: str | None) -> type[Method]:
        """The class for a schedule, where those differ in more than their curve."""
        return cls

    def __init__(self, config: PruningConfig | None = None, state: State | None = None) -> None:
        self.config = config or PruningConfig()
        self.state = copy.deepcopy(state) if state else self.State()  # training changes it

    def prune(self, model: nn.Module, task: Task) -> Pruned:
        """Stage 2. Changes nothing of `model`; what training needs to know goes into the state."""
        raise NotImplementedError

    def on_start(self, model: nn.Module) -> None:
        """Act before a training starts or goes on, before the network is compiled."""

    def on_gradients(self, model: nn.Module) -> None:
        """See the gradients of a batch, and change them if need be."""

    def on_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Act after update number `step` (from 0) of `steps`."""
        apply_masks(model, self.state.masks, optimizer)

    def on_epoch(
        self, model: nn.Module, progress: float, rows: list[dict[str, Any]], measure: Measure
    ) -> dict[str, Any]:
        """Act after an epoch, the fraction `progress` of all; returns what joins its log row.

        May change the `rows` of earlier epochs.
        """
        return {}

    def to_cut(self, model: nn.Module, progress: float) -> Kept:
        """The channels to keep of groups that are cut now, after an epoch, for good."""
        return {}

    def finish(self, model: nn.Module) -> tuple[nn.Module, State]:
        """The network as it would be handed over now, and its state. Changes nothing.

        While the pruning is pending, that is without the channels that are not kept now.
        """
        if not self.state.pending:
            return model, self.state
        kept = self.state.kept_channels()
        masks = cut_masks(spec_of(model), kept, self.state.masks)
        return cut(model, kept), replace(self.state, masks=masks, pending=False)


@dataclass
class Record:
    """How a network was pruned: what its checkpoint says, and a later stage goes on from."""

    steps: list[PruningConfig]
    ratio: float | list[float]  # of the last step, as asked for or as a target needed it
    dense: Spec  # the network before any pruning
    share_cut: float  # of the MACs, by the last step
    state: State

    def method(self) -> Method:
        """The method of the last step, with a state of its own.

        Raises ValueError if a plugin brought it, or its criterion, and is not here.
        """
        kind, criterion = method_class(self.steps[-1]), self.steps[-1].criterion
        if self.state.pending and criterion not in kind.criteria:
            raise ValueError(f"criterion {criterion} is not known here; --plugin FILE may bring it")
        return kind(self.steps[-1], self.state)

    def as_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        own = {"method": self.steps[-1].method, "steps": [step.as_dict() for step in self.steps]}
        own |= {"ratio": self.ratio, "dense": self.dense, "share_cut": self.share_cut}
        own["masks"] = {name: mask.cpu() for name, mask in self.state.masks.items()}
        state = {key: value for key, value in vars(self.state).items() if key != "masks"}
        return dict(**own, **state)  # raises TypeError if a name is used twice

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Record:
        """What `as_dict` described. Raises KeyError or TypeError if something is missing."""
        own = {key: content[key] for key in ("ratio", "dense", "share_cut")}
        steps = [PruningConfig.from_dict(step) for step in content["steps"]]
        # Of a plugin that is not here: enough to know the network, not to go on with the pruning.
        kind = method_class(steps[-1]).State if steps[-1].method in METHODS else State
        state = {k: v for k, v in content.items() if k not in {"method", "steps", *own}}
        return cls(steps, **own, state=kind.from_dict(state))
