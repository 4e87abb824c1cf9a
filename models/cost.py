"""Parameters and multiply-accumulates of a spec in closed form, layer by layer."""

from math import prod
from typing import NamedTuple

import torch
from torch import nn

from .resnet import STEMS, Spec, block_plans, spec_of


class LayerCost(NamedTuple):
    """What one layer costs. `macs` are for one image; BatchNorm counts none (it folds away)."""

    name: str
    kind: str  # "conv", "bn" or "linear"
    shape: tuple[int, ...]  # of the weight
    size: int  # height = width of the output, in pixels
    params: int
    macs: int


class Cost(NamedTuple):
    """Of a whole network: trainable parameters, and MACs (conv and linear) for one image."""

    params: int
    macs: int


def layer_costs(spec: Spec, image_size: int = 32) -> list[LayerCost]:
    """One row per layer, for square images of `image_size` pixels."""
    widths, rows = spec["widths"], []

    def conv(name: str, bn: str | None, inputs: int, kernel: int, stride: int, size: int) -> int:
        # `inputs` are those of one filter; all our convolutions pad to ceil(size / stride).
        size, out = -(-size // stride), widths[name]
        weights, bias = out * inputs * kernel * kernel, 0 if bn else out
        shape = (out, inputs, kernel, kernel)
        rows.append(LayerCost(name, "conv", shape, size, weights + bias, weights * size * size))
        if bn:
            rows.append(LayerCost(bn, "bn", (out,), size, 2 * out, 0))
        return size

    stem = STEMS[spec["stem"]]
    size = conv("conv1", "bn1", 3, stem.kernel, stem.stride, image_size)
    size = -(-size // 2) if stem.pool else size
    channels = widths["conv1"]
    for plan in block_plans(spec):
        incoming, size_in, b = channels, size, plan.name
        for layer in plan.convs:
            name, inputs = f"{b}.{layer.name}", 1 if layer.depthwise else channels
            size = conv(name, f"{b}.{layer.bn}", inputs, layer.kernel, layer.stride, size)
            channels = widths[name]
        if plan.se:
            conv(f"{b}.se.fc1", None, channels, 1, 1, 1)
            conv(f"{b}.se.fc2", None, widths[f"{b}.se.fc1"], 1, 1, 1)
        if plan.shortcut == "projection":
            conv(f"{b}.downsample.0", f"{b}.downsample.1", incoming, 1, plan.stride, size_in)
    classes = spec["num_classes"]
    shape = (classes, channels)
    rows.append(LayerCost("fc", "linear", shape, 1, classes * (channels + 1), classes * channels))
    return rows


def cost_of(spec: Spec, image_size: int = 32) -> Cost:
    """The sum of `layer_costs`."""
    rows = layer_costs(spec, image_size)
    return Cost(sum(row.params for row in rows), sum(row.macs for row in rows))


def costs(network: nn.Module, image_size: int) -> dict[str, int]:
    """Parameters and MACs of a live network; and what is left if zero weights could be left out.

    `effective_macs` is theoretical: dense kernels multiply zeros like any other number.
    """
    spec, parameters = spec_of(network), network.named_parameters()
    nonzero = {name: torch.count_nonzero(values).item() for name, values in parameters}
    left = sum(
        row.macs * (nonzero[f"{row.name}.weight"] / prod(row.shape))
        for row in layer_costs(spec, image_size)
    )
    counted = {"nonzero_params": sum(nonzero.values()), "effective_macs": round(left)}
    return {**cost_of(spec, image_size)._asdict(), **counted}
