"""`soft`: while training, zero the weakest filters after each epoch, and let them grow back.

He et al. 2018 (arXiv 1808.06866). The threshold is dynamic: recomputed each epoch from the norms
as they are then. Only the filters are zeroed, never the BatchNorm scale behind them, or no
gradient could reach them again. (None does either where the shift is negative, since the ReLU
blocks it; there only the momentum that a filter had brings it back.) Since a zeroed filter still
emits its BatchNorm's shift, every accuracy that is reported is that of the network with those
channels cut out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models import Group, channel_groups, spec_of

from .allocation import Kept, Limits, allocate, not_kept, select
from .criteria import Calibration, normalize_scores, score
from .method import FILTER_FLAGS, Measure, Method, Pruned, State, Task
from .selection import as_lists, choose
from .surgery import cut, mask_channels


def asymptotic(t: float) -> float:
    """Share of the final ratio after the fraction t of the epochs: a exp(-k t) + b.

    Through (0, 0), (1/8, 3/4) and (1, 1), as in He et al. 2019 (arXiv 1808.07471), equation 5.
    """
    u = 0.25  # exp(-k/8): the fixed point of the condition at 1/8
    for _ in range(20):
        u = 1 - 0.75 * (1 - u**8)
    return (1 - u ** (8 * t)) / (1 - u**8)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "he2018": lambda t: 1.0,
    "constant": lambda t: 1.0,  # an older name of the same
    "asymptotic": asymptotic,
}


@torch.no_grad()
def zero_filters(model: nn.Module, groups: list[Group], kept: Kept) -> None:
    """Zero the filters of all channels but the kept ones, in place; BatchNorms stay."""
    for group in groups:
        gone = not_kept(group.size, kept[group.name])
        for layer, channels in group.producers:
            module = model.get_submodule(layer)
            module.weight[torch.tensor(channels)[gone].to(module.weight.device)] = 0


@torch.no_grad()
def tame_gradients(model: nn.Module, groups: list[Group], kept: dict[str, list[int]]) -> None:
    """Keep the gradient of each zeroed filter within the median of its layer's others.

    Behind a filter of zero the variance is zero, so BatchNorm divides by the root of its epsilon
    and multiplies the filter's gradient by hundreds. Untamed, the filters that were the weakest
    come back as the strongest, and training collapses.
    """
    for group in groups:
        if len(kept.get(group.name, range(group.size))) == group.size:
            continue
        gone = not_kept(group.size, kept[group.name])
        for layer, channels in group.producers:
            gradient = model.get_submodule(layer).weight.grad
            own = torch.tensor(channels, device=gradient.device)
            norms = gradient[own].flatten(1).norm(dim=1)
            gone = gone.to(gradient.device)
            scale = (norms[~gone].median() / norms[gone].clamp_min(1e-12)).clamp_max(1)
            gradient[own[gone]] *= scale.view(-1, 1, 1, 1)


@dataclass
class SoftState(State):
    """Also what the plan needs: the final ratio, and the choices of all epochs so far."""

    final_ratio: float | list[float] = 0.0
    multiple: int = 1
    history: list[Tensor] = field(default_factory=list)  # of bool, True for a kept channel


class Zeroing(Method):
    """Zero the weakest filters after each epoch of a training; cut what is zeroed at its end."""

    State = SoftState
    defaults = {"criterion": "l2", "schedule": "he2018"}
    flags = (*FILTER_FLAGS, "schedule")
    unfit = ("taylor", "gate")  # neither images nor gates while training
    allocations = ("layer", "global")
    recalibrates = True

    def prune(self, model: nn.Module, task: Task) -> Pruned:
        """Set up; what is reported is the network that cutting right now would give."""
        config = self.config
        targets = config.target_macs, config.target_params, config.target_latency
        if config.allocation == "global" and any(targets):
            # The ratio is solved now; where a global threshold will cut in the end is not known.
            raise ValueError("a target with --method soft needs --allocation layer")
        ratio, kept, rows = choose(model, config, task)
        everything = {g.name: list(range(g.size)) for g in channel_groups(spec_of(model))}
        multiple = config.round_to or 1
        self.state = self.State(everything, dict(task.masks), True, ratio, multiple)
        return Pruned(model, cut(model, kept), mask_channels(model, kept), ratio, rows)

    def on_start(self, model: nn.Module) -> None:
        self.groups = channel_groups(spec_of(model))

    def on_gradients(self, model: nn.Module) -> None:
        if self.state.pending:
            tame_gradients(model, self.groups, self.state.kept)

    def on_epoch(
        self, model: nn.Module, progress: float, rows: list[dict[str, Any]], measure: Measure
    ) -> dict[str, Any]:
        """Recompute the threshold, zero what lies under it, and tell what changed."""
        if not self.state.pending:
            return {}
        uncut_top1, _ = measure(model)
        groups, _ = select(self.groups, self.config.skip, self.config.scope)
        scores = score(model, groups, self.config.criterion, Calibration(self.config.seed))
        kept = self._choose(groups, scores, SCHEDULES[self.config.schedule](progress))
        zero_filters(model, groups, kept)
        self.state.kept = as_lists(kept)

        chosen = ~torch.cat([not_kept(g.size, kept[g.name]) for g in groups])
        past = self.state.history
        before = past[-1] if past else torch.ones_like(chosen)
        past.append(chosen)
        if progress == 1:
            for row, choice in zip(rows, past, strict=False):
                row["overlap"] = (~choice & ~chosen).sum().item() / max(1, (~chosen).sum().item())
            self.state.history = []
        return {
            "pruned_ratio": 1 - chosen.float().mean().item(),
            "threshold": _threshold(scores, kept),
            "flipped": int((chosen != before).sum()),
            "regrown": int((chosen & ~before).sum()),
            "overlap": 1.0,  # of what is cut in the end, the share chosen now: known at the end
            "top1_unmasked": uncut_top1,
        }

    def _choose(self, groups: list[Group], scores: dict[str, Tensor], share: float) -> Kept:
        """The channels that stay where only a `share` of the final ratio goes."""
        config, ratio = self.config, self.state.final_ratio
        ratio = [r * share for r in ratio] if isinstance(ratio, list) else ratio * share
        if config.allocation == "global":
            scores = normalize_scores(scores, config.criterion)
        limits = Limits(config.min_keep, self.state.multiple)
        return allocate(groups, scores, ratio, config.allocation, limits)


def _threshold(scores: dict[str, Tensor], kept: Kept) -> float | None:
    """The highest score that was pruned, of the mean score of its group; averaged over groups."""
    highest = []
    for name, own in scores.items():
        gone = not_kept(len(own), kept[name])
        if gone.any():
            highest.append((own[gone].max() / own.mean()).item())
    return sum(highest) / len(highest) if highest else None
