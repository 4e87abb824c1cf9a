"""`weight`: masks over single weights (Han et al. 2015, arXiv 1506.02626).

The network keeps its shape, so dense kernels are no faster; what it gains is size. At the end,
channels that provably contribute nothing are cut out.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models import Group, channel_groups, spec_of

from .allocation import Kept, keep_count, matches
from .config import PruningConfig
from .masks import Masks, apply_masks, cut_masks
from .method import Method, Pruned, Row, State, Task, cubic
from .surgery import cut

RAMP = (0.0, 0.75)  # start and end, as fractions of the training; the rest recovers
GRADUAL_UPDATES = 100


def magnitude(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Absolute value (Han et al. 2015, section 3)."""
    return weight.abs()


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """The control: uniform scores, drawn from the seed."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)


WEIGHT_CRITERIA = {"magnitude": magnitude, "random": random}


def weight_layers(model: nn.Module, skip: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names of the convolutions and the classifier to prune, and why others are protected."""
    kinds = (nn.Conv2d, nn.Linear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    protected = matches({name: [name] for name in names}, skip)
    return [name for name in names if name not in protected], protected


def _best(scores: Tensor, count: int) -> Tensor:
    """True for the `count` highest scores; of equal ones the first."""
    flat = scores.flatten()
    threshold = torch.kthvalue(flat, flat.numel() - count + 1).values
    mask = flat > threshold
    mask[(flat == threshold).nonzero().flatten()[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)


@torch.no_grad()
def masks_for(
    model: nn.Module,
    layers: list[str],
    ratio: float,
    config: PruningConfig,
    previous: Masks | None = None,
) -> Masks:
    """Masks that remove the fraction `ratio` of the weights that `previous` masks left.

    Allocation "global" removes the lowest scores of all layers together, "layer" the ratio in
    each. Every layer keeps at least one weight.
    """
    generator = torch.Generator().manual_seed(config.seed)
    scores, remaining = {}, {}
    for name in layers:
        weight = model.get_submodule(name).weight
        # Contiguous, so that the flat view below is one: training keeps weights channels last.
        own = WEIGHT_CRITERIA[config.criterion](weight, generator).float().contiguous()
        if previous and name in previous:
            own = own.masked_fill(~previous[name].to(own.device), -1.0)
        remaining[name] = int((own >= 0).sum())
        own.view(-1)[own.argmax()] = float("inf")  # a layer is never emptied
        scores[name] = own
    if config.allocation == "layer":
        return {n: _best(s, max(1, keep_count(remaining[n], ratio))) for n, s in scores.items()}
    total = max(len(layers), keep_count(sum(remaining.values()), ratio))
    chosen = _best(torch.cat([s.flatten() for s in scores.values()]), total)
    parts = chosen.split([s.numel() for s in scores.values()])
    return {n: m.view(s.shape) for (n, s), m in zip(scores.items(), parts, strict=True)}


@torch.no_grad()
def pattern_masks(model: nn.Module, layers: list[str], kept: int, block: int) -> Masks:
    """N:M masks: of `block` consecutive input channels the `kept` largest weights stay.

    The layout that sparse tensor cores expect (Mishra et al. 2021, arXiv 2104.08378). Layers
    whose inputs do not divide into blocks are left out.
    """
    masks = {}
    for name in layers:
        scores = model.get_submodule(name).weight.abs().movedim(1, -1)
        if scores.shape[-1] % block:
            continue
        blocks = scores.reshape(-1, block)
        order = torch.sort(blocks, dim=1, descending=True, stable=True).indices
        mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(1, order[:, :kept], True)
        masks[name] = mask.view(scores.shape).movedim(-1, 1).contiguous()
    return masks


@torch.no_grad()
def idle_channels(model: nn.Module) -> Kept:
    """Groups with channels that provably contribute nothing, and the channels that do.

    A channel is idle if nothing reads it (all weights that do are zero), and an inner one also if
    it can be seen that it is always zero.
    """
    kept = {}
    for group in channel_groups(spec_of(model)):
        useful = torch.zeros(group.size, dtype=torch.bool)
        for layer, channels in group.consumers:
            weight = model.get_submodule(layer).weight.transpose(0, 1)[list(channels)]
            useful |= weight.flatten(1).ne(0).any(1).cpu()
        if group.scope == "inner":
            useful &= _can_be_positive(model, group)
        left = useful.nonzero().flatten()
        if 0 < len(left) < group.size:
            kept[group.name] = left
        elif len(left) == 0 and group.size > 1:
            kept[group.name] = torch.tensor([0])  # a group is never emptied
    return kept


def _can_be_positive(model: nn.Module, group: Group) -> Tensor:
    """False (size,) for the channels of an inner group that are zero behind their ReLU, whatever
    the image.

    Convolutions inside a block read what a ReLU left, so where no weight times its BatchNorm's
    scale is positive, only the BatchNorm's shift can make the channel so.
    """
    alive = torch.ones(group.size, dtype=torch.bool)
    for conv, norm in zip_longest((*group.producers, *group.passthrough), group.norms):
        module = model.get_submodule(conv.layer)
        if norm is None:  # in squeeze-and-excitation, where inputs have both signs
            lets_pass, shift = module.weight != 0, module.bias
        else:
            bn = model.get_submodule(norm.layer)
            known = bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            weight, shift = fuse_conv_bn_weights(module.weight, module.bias, *known)
            lets_pass = weight > 0
        alive = (alive & lets_pass.flatten(1).any(1).cpu()) | (shift > 0).cpu()
    return alive


@dataclass
class WeightState(State):
    """Also what the gradual plan needs, and how many channels turned out idle."""

    layers: list[str] = field(default_factory=list)  # that are pruned
    start: Masks = field(default_factory=dict)  # the masks of an earlier pruning
    channels_removed: int | None = None

    def figures(self) -> dict[str, Any]:
        removed = self.channels_removed
        return {} if removed is None else {"channels_removed": removed}


class Weight(Method):
    """Mask the weights that score lowest: at once or, with --gradual, during training."""

    State = WeightState
    defaults = {"criterion": "magnitude", "allocation": "global"}
    flags = ("pattern", "gradual", "ramp")
    criteria = WEIGHT_CRITERIA
    allocations = ("layer", "global")

    def prune(self, model: nn.Module, task: Task) -> Pruned:
        config = self.config
        layers, protected = weight_layers(model, config.skip)
        if isinstance(config.ratio, tuple):
            raise ValueError("--method weight takes one --ratio, not one per stage")
        if not layers:
            raise ValueError("--skip leaves nothing to prune")
        if config.pattern:
            kept, block = (int(part) for part in config.pattern.split(":"))
            masks = pattern_masks(model, layers, kept, block)
            if not masks:
                raise ValueError(
                    f"--pattern {config.pattern}: no layer's inputs divide into blocks"
                )
            ratio = 1 - kept / block
            protected |= {n: f"--pattern {config.pattern}" for n in layers if n not in masks}
            for name in masks.keys() & task.masks.keys():
                masks[name] &= task.masks[name].to(masks[name].device)
        else:
            ratio = config.ratio
            masks = masks_for(model, layers, ratio, config, task.masks)
        masks = {**task.masks, **masks}
        masked = copy.deepcopy(model)
        apply_masks(masked, masks)
        self.state = WeightState(masks=masks)
        network, _ = self.finish(masked)
        if config.gradual:
            earlier = dict(task.masks)
            self.state = WeightState({}, dict(earlier), True, layers, earlier)
        rows = _rows(model, masks, protected)
        return Pruned(model if config.gradual else masked, network, masked, ratio, rows)

    def on_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int
    ) -> None:
        """Follow the gradual schedule, if there is one, and hold the masks."""
        apply_masks(model, self.state.masks, optimizer)
        due = step % max(1, steps // GRADUAL_UPDATES) == 0 or step + 1 == steps
        if self.state.pending and due:
            start, end = self.config.ramp or RAMP
            share = cubic(max(0.0, (step + 1) / steps - start) / (end - start))
            ratio, earlier = share * self.config.ratio, self.state.start
            masks = masks_for(model, self.state.layers, ratio, self.config, earlier)
            self.state.masks = earlier | masks
            apply_masks(model, self.state.masks, optimizer)

    def finish(self, model: nn.Module) -> tuple[nn.Module, State]:
        """Cut out the idle channels; that can make others idle, so until none is left.

        Not where a pattern counts in blocks of channels, which a cut would break up.
        """
        masks, before = self.state.masks, sum(spec_of(model)["widths"].values())
        while not self.config.pattern and (kept := idle_channels(model)):
            masks = cut_masks(spec_of(model), kept, masks)
            model = cut(model, kept)
        removed = before - sum(spec_of(model)["widths"].values())
        return model, WeightState(masks=masks, channels_removed=removed)


def _rows(model: nn.Module, masks: Masks, protected: dict[str, str]) -> list[Row]:
    rows = []
    for name in dict.fromkeys([*masks, *protected]):
        size = model.get_submodule(name).weight.numel()
        kept = int(masks[name].sum()) if name in masks else size
        rows.append((name, size, kept, protected.get(name, "")))
    return rows
