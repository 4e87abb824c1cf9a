"""How important is a channel? A criterion scores the channels of a group; higher = keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import Group

Criterion = Callable[[nn.Module, Group], Tensor]


def filters(model: nn.Module, group: Group) -> list[Tensor]:
    """The filters that produce the group, per producing convolution: (size, weights each)."""
    spans = group.producers
    return [model.get_submodule(s.layer).weight[list(s.channels)].flatten(1) for s in spans]


def l1(model: nn.Module, group: Group) -> Tensor:
    """Sum of absolute filter weights (Li et al. 2017, arXiv 1608.08710, section 3.1).

    Of a group with several producers, the sum over all of them.
    """
    return torch.stack([f.abs().sum(1) for f in filters(model, group)]).sum(0)


CRITERIA: dict[str, Criterion] = {"l1": l1}


@torch.no_grad()
def score(model: nn.Module, groups: list[Group], criterion: str) -> dict[str, Tensor]:
    """Scores (size,) in float32 of every group by its name."""
    return {g.name: CRITERIA[criterion](model, g).float().cpu() for g in groups}
