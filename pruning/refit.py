"""Least-squares repair of a cut network: what reads the channels that are left makes up for the
others (He et al. 2017, arXiv 1707.06168, section 3.1, for whole networks)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from models import spec_of

from .allocation import Kept
from .criteria import NO_IMAGES, Batches
from .surgery import cut_tensors

RIDGE = 1e-3  # of the mean square of the inputs: keeps the solution small where they are alike


@torch.no_grad()
def refit(model: nn.Module, slim: nn.Module, kept: Kept, batches: Batches) -> None:
    """Change the weights of `slim`, in place, so that its layers compute what those of `model` do.

    `slim` is `model` with only the `kept` channels. Layer by layer, in the order of the data, each
    one that lost inputs gets the weights with the least squared error to the outputs that it keeps,
    on the images of `batches`; then BatchNorm's statistics are averaged anew.
    """
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "weight")}
    outputs = {f"{name}.outputs": torch.arange(len(layers[name].weight)) for name in layers}
    outputs = cut_tensors(spec_of(model), kept, outputs)
    for name, old in layers.items():
        new = slim.get_submodule(name)
        if old.weight.dim() > 1 and old.weight.shape[1] != new.weight.shape[1]:
            squares, products = _sums(old, new, lambda: _pass(model, slim, batches))
            size = len(squares)
            ridge = RIDGE * squares.diagonal().mean().clamp_min(1e-12)  # inputs may all be zero
            squares += ridge * torch.eye(size).to(squares)
            solved = torch.linalg.solve(squares, products[outputs[f"{name}.outputs"]].T).T
            new.weight.copy_(solved.view_as(new.weight))
    update_bn(batches(), slim)


def _pass(model: nn.Module, slim: nn.Module, batches: Batches) -> Iterator[None]:
    images = 0
    for x, _ in batches():
        images += len(x)
        model.eval()(x)
        yield slim.eval()(x)
    if not images:
        raise ValueError(NO_IMAGES)


def _sums(
    old: nn.Module, new: nn.Module, passes: Callable[[], Iterator[None]]
) -> tuple[Tensor, Tensor]:
    """The normal equations of a layer: products of its inputs in the small network with each
    other (inputs, inputs), and with its outputs in the large one (outputs, inputs)."""
    seen: dict[str, Tensor] = {}
    hooks = (
        old.register_forward_hook(lambda module, inputs, output: seen.update(output=output)),
        new.register_forward_pre_hook(lambda module, inputs: seen.update(input=inputs[0])),
    )
    size = new.weight[0].numel()
    squares = torch.zeros(size, size, dtype=torch.double, device=new.weight.device)
    products = squares.new_zeros(len(old.weight), size)
    for _ in passes():
        inputs, outputs = seen["input"], seen["output"]
        if isinstance(new, nn.Conv2d):
            inputs = F.unfold(inputs, new.kernel_size, padding=new.padding, stride=new.stride)
            outputs = outputs.flatten(2)
        else:
            inputs, outputs = inputs.unsqueeze(2), outputs.unsqueeze(2)
        inputs = inputs.transpose(0, 1).flatten(1)  # (weights of an output, positions)
        outputs = outputs.transpose(0, 1).flatten(1)
        if old.bias is not None:
            outputs = outputs - old.bias[:, None]
        squares += inputs @ inputs.T
        products += outputs @ inputs.T
    for hook in hooks:
        hook.remove()
    return squares, products
