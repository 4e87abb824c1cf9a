"""Masks over single weights: which stay, and keeping the others at zero."""

import torch
from torch import Tensor, nn

from models import Spec

from .allocation import Kept
from .surgery import cut_tensors

Masks = dict[str, Tensor]  # layer name -> bool, of the shape of its weight; True stays


@torch.no_grad()
def apply_masks(
    model: nn.Module, masks: Masks, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Zero what the masks remove, in place: in the weights, and in their momentum.

    The masks are explicit: a weight that training happens to bring to zero is not frozen.
    """
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        mask = masks[name] = mask.to(weight.device)  # itself, if it is there
        weight.mul_(mask)
        momentum = optimizer.state[weight].get("momentum_buffer") if optimizer else None
        if momentum is not None:
            momentum.mul_(mask)


def cut_masks(spec: Spec, kept: Kept, masks: Masks) -> Masks:
    """The masks of a network of which only the kept channels are left."""
    cut = cut_tensors(spec, kept, {f"{name}.weight": mask.cpu() for name, mask in masks.items()})
    return {key.removesuffix(".weight"): mask for key, mask in cut.items()}
