"""Cut channels out of a network. Nothing here changes the model that it is given."""

import copy
import math

import torch
from torch import Tensor, nn

from models import Group, Spec, block_plans, build, channel_groups, spec_of

from .allocation import Kept, not_kept

TOLERANCE = 1e-3  # of the largest logit, in float32; rounding alone stays far below
# Which dimension of a layer's tensors the channels of a group are, by the layer's role in it.
DIMENSION = {"producers": 0, "norms": 0, "passthrough": 0, "consumers": 1}


def _survivors(groups: list[Group], kept: Kept) -> dict[tuple[str, int], list[int]]:
    """For every (layer, dimension) that channels of groups are in, the indices that stay."""
    _check(groups, kept)
    stays: dict[tuple[str, int], list[int]] = {}
    for group in groups:
        own = kept[group.name].tolist() if group.name in kept else range(group.size)
        for role, dim in DIMENSION.items():
            for layer, channels in getattr(group, role):
                stays.setdefault((layer, dim), []).extend(channels[i] for i in own)
    return {key: sorted(index) for key, index in stays.items()}


def _check(groups: list[Group], kept: Kept) -> None:
    sizes = {g.name: g.size for g in groups}
    for name, index in kept.items():
        if name not in sizes:
            raise ValueError(f"{name}: no such channel group")
        values = index.tolist()
        if not values:
            raise ValueError(f"{name}: would lose all of its {sizes[name]} channels")
        if sorted(set(values)) != values or values[0] < 0 or values[-1] >= sizes[name]:
            raise ValueError(f"{name}: kept channels must ascend within 0 to {sizes[name] - 1}")


def cut_spec(spec: Spec, kept: Kept, groups: list[Group] | None = None) -> Spec:
    """The spec after removing all channels but the kept ones.

    Groups that `kept` does not name stay whole. `groups` are all of the spec, from a caller that
    has them. Raises ValueError for a group that does not exist, that would be emptied, or whose
    indices are out of range.
    """
    survivors = _survivors(groups or channel_groups(spec), kept)
    widths = {name: len(survivors[name, 0]) for name in spec["widths"]}
    pads = dict(spec["pads"])
    for plan in block_plans(spec):
        if plan.shortcut == "pad":
            name, last = f"{plan.name}.downsample", f"{plan.name}.{plan.convs[-1].name}"
            pads[name] = sum(channel < pads[name] for channel in survivors[last, 0])
    return {**spec, "widths": widths, "pads": pads}


def cut_tensors(spec: Spec, kept: Kept, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `cut` does to a state dict, for tensors of the same names; raises as `cut_spec` does."""
    survivors, chosen = _survivors(channel_groups(spec), kept), {}
    for key, tensor in tensors.items():
        layer = key.rpartition(".")[0]
        for dim in range(tensor.dim()):
            if index := survivors.get((layer, dim)):
                tensor = tensor.index_select(dim, torch.tensor(index, device=tensor.device))
        chosen[key] = tensor.clone()
    return chosen


def cut(model: nn.Module, kept: Kept) -> nn.Module:
    """A new, physically smaller network with only the kept channels.

    It computes what `mask_channels` computes. Raises ValueError as `cut_spec` does.
    """
    spec = spec_of(model)
    state = cut_tensors(spec, kept, model.state_dict())
    return build(cut_spec(spec, kept), state).train(model.training)


@torch.no_grad()
def mask_channels(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy, as large as before, whose removed channels are zero wherever they are read.

    Not only the filters go to zero but the BatchNorm scale and shift as well: a BatchNorm behind
    a zeroed filter would still emit its shift.
    """
    groups = channel_groups(spec_of(model))
    _check(groups, kept)
    model = copy.deepcopy(model)
    for group in groups:
        if group.name not in kept:
            continue
        gone = not_kept(group.size, kept[group.name])
        for layer, channels in (*group.producers, *group.norms):
            module = model.get_submodule(layer)
            index = torch.tensor(channels)[gone]
            for tensor in (module.weight, module.bias):
                if tensor is not None:
                    tensor[index] = 0
    return model


@torch.inference_mode()
def logit_difference(a: nn.Module, b: nn.Module, x: Tensor) -> tuple[float, float]:
    """Largest absolute difference between the logits of two networks, and the largest logit.

    Both are put into evaluation mode; `x` is normalized input (n, 3, h, w).
    """
    ya, yb = a.eval()(x), b.eval()(x)
    return (ya - yb).abs().max().item(), ya.abs().max().item()


def verify(masked: nn.Module, slim: nn.Module, x: Tensor) -> tuple[float, float]:
    """What `logit_difference` tells; raises RuntimeError if it is more than rounding.

    Raises ValueError for logits that are not finite.
    """
    difference, largest = logit_difference(masked, slim, x)
    if not math.isfinite(largest):
        raise ValueError("the network gives NaN or infinite logits")
    if not difference <= TOLERANCE * largest:
        raise RuntimeError(
            f"the cut network computes something else: logits differ by {difference}"
        )
    return difference, largest
