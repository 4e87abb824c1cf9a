"""How important is a channel, or a weight? A criterion gives scores; higher = keep.

A criterion takes the model, the groups to score and calibration data, and returns scores (size,)
by group name. `by_filter` makes one out of a function of a filter matrix, so a new criterion is
one function and one entry in CRITERIA.
"""

import copy
from collections.abc import Callable, Iterable
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Group, Span

Scores = dict[str, Tensor]


Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # images (n, 3, h, w), labels (n,)
NO_IMAGES = "`batches` gives no images; it is called several times, and each time from the start"


class Calibration(NamedTuple):
    """What a criterion may use besides the weights."""

    seed: int = 0
    batches: Batches | None = None  # of training images; None where there are none
    effects: Scores | None = None  # of the gates, while training


Criterion = Callable[[nn.Module, list[Group], Calibration], Scores]


def by_filter(function: Callable[[Tensor], Tensor]) -> Criterion:
    """A criterion from scores (n,) of filters (n, fan-in); several producers add up."""

    @wraps(function)  # whose docstring is the criterion's
    def criterion(model: nn.Module, groups: list[Group], calibration: Calibration) -> Scores:
        def scores(span: Span) -> Tensor:
            w = model.get_submodule(span.layer).weight[list(span.channels)].flatten(1)
            found = function(w.to(torch.promote_types(w.dtype, torch.float32)))
            if found.shape != (len(w),):
                told = f"a criterion gives {tuple(found.shape)} scores for {len(w)} filters"
                raise ValueError(told)
            return found

        return {g.name: sum(map(scores, g.producers)) for g in groups}

    return criterion


def l1(w: Tensor) -> Tensor:
    """Sum of absolute weights (Li et al. 2017, arXiv 1608.08710, section 3.1)."""
    return w.abs().sum(1)


def l2(w: Tensor) -> Tensor:
    """Euclidean norm (He et al. 2018, arXiv 1808.06866, equation 2)."""
    return w.norm(dim=1)


def fpgm(w: Tensor) -> Tensor:
    """Distance to the layer's other filters (He et al. 2019, arXiv 1811.00250, equation 7).

    The filter nearest to the geometric median of its layer is the most replaceable one.
    """
    return torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def bn(model: nn.Module, groups: list[Group], calibration: Calibration) -> Scores:
    """Scale of the BatchNorm behind it (Liu et al. 2017, arXiv 1708.06519, section 3).

    Groups without a BatchNorm (the middle of squeeze-and-excitation) go by their L1-norms, brought
    to the mean scale of the others.
    """

    def scales(group: Group) -> Tensor:
        modules = [(model.get_submodule(s.layer), list(s.channels)) for s in group.norms]
        scales = [module.weight[channels].abs() for module, channels in modules]
        return torch.stack(scales).mean(0)

    scores = {g.name: scales(g) for g in groups if g.norms}
    typical = torch.cat(list(scores.values())).mean() if scores else 1.0
    bare = by_filter(l1)(model, [g for g in groups if not g.norms], calibration)
    return scores | {name: typical * own / own.mean() for name, own in bare.items()}


def taylor(model: nn.Module, groups: list[Group], calibration: Calibration) -> Scores:
    """Effect on the loss, estimated by gradients (Molchanov et al. 2019, arXiv 1906.10771, eq. 8).

    The squared sum of weight times gradient, averaged over batches of training images; on a copy
    in evaluation mode.
    """
    if calibration.batches is None:
        raise ValueError("--criterion taylor needs images: `batches`, or see res50prune.py")
    model = copy.deepcopy(model).eval().requires_grad_()
    scores, count = {g.name: torch.zeros(g.size) for g in groups}, 0
    for x, y in calibration.batches():
        model.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(model(x), y).backward()
        count += 1
        for group in groups:
            for layer, channels in group.producers:
                w = model.get_submodule(layer).weight
                product = (w * w.grad)[list(channels)].flatten(1).sum(1)
                scores[group.name] += product.square().cpu()
    if not count:
        raise ValueError(NO_IMAGES)
    return {name: total / count for name, total in scores.items()}


def gate(model: nn.Module, groups: list[Group], calibration: Calibration) -> Scores:
    """Effect on the loss of its gate, averaged while training (Molchanov et al. 2017, arXiv
    1611.06440, section 2.2; squared, as in their paper of 2019).

    Before any gate was seen, L1-norms as shares of their mean.
    """
    return calibration.effects or normalize_scores(by_filter(l1)(model, groups, calibration), "l1")


def random(model: nn.Module, groups: list[Group], calibration: Calibration) -> Scores:
    """Drawn from the seed, the control (uniform scores)."""
    generator = torch.Generator().manual_seed(calibration.seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in groups}


CRITERIA: dict[str, Criterion] = {
    "l1": by_filter(l1),
    "l2": by_filter(l2),
    "fpgm": by_filter(fpgm),
    "bn": bn,
    "taylor": taylor,
    "gate": gate,
    "random": random,
}


# Those that compare across groups as they are; sums over filters grow with the fan-in instead.
COMPARABLE = ("bn", "taylor", "gate", "random")


def normalize_scores(scores: Scores, criterion: str) -> Scores:
    """Scores that compare across groups: where they do not by themselves, divided by their mean."""
    if criterion in COMPARABLE:
        return scores
    return {name: own / own.abs().mean().clamp_min(1e-30) for name, own in scores.items()}


@torch.no_grad()
def score(
    model: nn.Module, groups: list[Group], criterion: str, calibration: Calibration | None = None
) -> Scores:
    """Scores (size,) in float32 on the CPU of every group, by its name.

    Raises ValueError for a criterion that gives something else.
    """
    scores = CRITERIA[criterion](model, groups, calibration or Calibration())
    for group in groups:
        own = scores.get(group.name)
        if own is None or own.shape != (group.size,) or not own.isfinite().all():
            wanted = f"{group.size} finite scores, one for each channel"
            raise ValueError(f"criterion {criterion} does not give {wanted}, for {group.name}")
    return {name: values.detach().float().cpu() for name, values in scores.items()}
