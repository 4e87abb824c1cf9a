"""`soft`: while training, zero the weakest filters after each epoch, and let them grow back.

He et al. 2018 (arXiv 1808.06866). The threshold is dynamic: recomputed each epoch from the norms
as they are then. Only the filters are zeroed, never the BatchNorm scale behind them, or no
gradient could reach them again. (None does either where the shift is negative, since the ReLU
blocks it; there only the momentum that a filter had brings it back.) Since a zeroed filter still
emits its BatchNorm's shift, every accuracy that is reported is that of the network with those
channels cut out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models import Group, channel_groups, spec_of

from ..allocation import Kept, Limits, allocate, not_kept, select
from ..criteria import CRITERIA, Evidence, comparable, score
from ..surgery import cut, silence
from .base import FILTER_FLAGS, Method, Pruned, State, Task
from .filters import as_lists, choose
from .masks import cut_masks, hold_masks, inherited


def asymptotic(t: float) -> float:
    """Share of the final ratio after the fraction t of the epochs: a exp(-k t) + b.

    Through (0, 0), (1/8, 3/4) and (1, 1), as in He et al. 2019 (arXiv 1808.07471), equation 5.
    """
    u = 0.25  # exp(-k/8): the fixed point of the condition at 1/8
    for _ in range(20):
        u = 1 - 0.75 * (1 - u**8)
    return (1 - u ** (8 * t)) / (1 - u**8)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "asymptotic": asymptotic,
}


def prune(model: nn.Module, task: Task) -> Pruned:
    """Set up; what is reported is the network that cutting right now would give."""
    options = task.options
    targets = options.target_macs, options.target_params, options.target_latency
    if options.allocation == "global" and any(targets):
        # The ratio is solved now; where a global threshold will cut in the end is not known.
        raise ValueError("a target with --method soft needs --threshold layer")
    ratio, kept, rows = choose(model, task)
    everything = {g.name: list(range(g.size)) for g in channel_groups(spec_of(model))}
    plan = {"ratio": ratio, "seed": task.evidence.seed, "history": []}
    state: State = {"kept": everything, "plan": plan, **inherited(task.previous)}
    return Pruned(model, cut(model, kept), silence(model, kept), ratio, state, rows)


@torch.no_grad()
def zero_filters(model: nn.Module, groups: list[Group], kept: Kept) -> None:
    """Zero the filters of all channels but the kept ones, in place; BatchNorms stay."""
    for group in groups:
        gone = not_kept(group.size, kept[group.name])
        for layer, channels in group.producers:
            module = model.get_submodule(layer)
            module.weight[torch.tensor(channels)[gone].to(module.weight.device)] = 0


@torch.no_grad()
def tame_gradients(model: nn.Module, state: State) -> None:
    """Keep the gradient of each zeroed filter within the median of its layer's others.

    Behind a filter of zero the variance is zero, so BatchNorm divides by the root of its epsilon
    and multiplies the filter's gradient by hundreds. Untamed, the filters that were the weakest
    come back as the strongest, and training collapses.
    """
    kept = state["kept"]
    for group in channel_groups(spec_of(model)):
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


def after_epoch(
    model: nn.Module,
    state: State,
    epoch: int,
    epochs: int,
    rows: list[dict[str, Any]],
    measure: Callable[[nn.Module], tuple[float, float]],
) -> dict[str, Any]:
    """Recompute the threshold, zero what lies under it, and tell what changed."""
    options = argparse.Namespace(**state["options"])
    free_top1, _ = measure(model)
    share = SCHEDULES[options.schedule]((epoch + 1) / epochs)
    plan = state["plan"]
    ratio = plan["ratio"]
    ratio = [r * share for r in ratio] if isinstance(ratio, list) else ratio * share
    groups, _ = select(channel_groups(spec_of(model)), options.skip, options.scope)
    scores = score(model, groups, options.criterion, Evidence(plan["seed"]))
    if options.allocation == "global":
        scores = comparable(scores, options.criterion)
    limits = Limits(options.min_keep, options.round_to or 1)
    kept = allocate(groups, scores, ratio, options.allocation, limits)
    zero_filters(model, groups, kept)

    chosen = ~torch.cat([not_kept(g.size, kept[g.name]) for g in groups])
    past = plan["history"]
    before = past[-1] if past else torch.ones_like(chosen)
    past.append(chosen)
    state["kept"] = as_lists(kept)
    if epoch + 1 == epochs:
        for row, mask in zip(rows, past, strict=False):
            row["overlap"] = _overlap(mask, chosen)
    return {
        "pruned_ratio": 1 - chosen.float().mean().item(),
        "threshold": _threshold(scores, kept),
        "flipped": int((chosen != before).sum()),
        "regrown": int((chosen & ~before).sum()),
        "overlap": 1.0,  # with the final choice; known, and filled in, at the end
        "top1_unmasked": free_top1,
    }


def _overlap(mask: Tensor, final: Tensor) -> float:
    """Of the channels pruned in the end, the share that was pruned then."""
    gone = ~final
    return (~mask & gone).sum().item() / max(1, gone.sum().item())


def _threshold(scores: dict[str, Tensor], kept: Kept) -> float | None:
    """The highest score that was pruned, of the mean score of its group; averaged over groups."""
    highest = []
    for name, own in scores.items():
        gone = not_kept(len(own), kept[name])
        if gone.any():
            highest.append((own[gone].max() / own.mean()).item())
    return sum(highest) / len(highest) if highest else None


def finish(model: nn.Module, state: State) -> tuple[nn.Module, State]:
    """Cut out what is zeroed now."""
    kept = {name: torch.tensor(index) for name, index in state["kept"].items()}
    rest = {key: value for key, value in state.items() if key != "plan"}
    if "masks" in state:
        rest["masks"] = cut_masks(spec_of(model), kept, state["masks"])
    return cut(model, kept), rest


METHOD = Method(
    prune,
    before_step=tame_gradients,
    after_step=hold_masks,
    after_epoch=after_epoch,
    finish=finish,
    defaults={"criterion": "l2"},
    flags=(*FILTER_FLAGS, "schedule"),
    criteria=tuple(name for name in CRITERIA if name != "taylor"),
    allocations=("layer", "global"),
    planned=True,
    settle=True,
    from_scratch=True,
)
