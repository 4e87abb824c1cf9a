"""Was a network read as it was trained? Signs on training images that it was not."""

from functools import partial

import torch
from torch import Tensor, nn

from .config import AUGMENTATIONS
from .data import Data, epoch_batches, normalize, pad_for_crops
from .device import Machine

BATCHES, BATCH = 4, 128
JUDGED = 2000  # images
# Mean shift of a BatchNorm's inputs, in standard deviations. In sound files, ResNet-20 to 56 on
# CIFAR-100, the largest of all layers was 0.03 to 0.04. It was 0.3 to 0.6 with a max-pool too many,
# 0.6 to 1.5 with padding on the wrong side, 0.10 to 0.23 with the mean and deviation of ImageNet.
SHIFT = 0.08


def doubts(model: nn.Module, data: Data, machine: Machine, seed: int = 0) -> list[str]:
    """What may be wrong, a line each; the network is on the machine and in evaluation mode."""
    found = []
    layer, shift = min(
        (norm_shift(model, data, machine, how, seed) for how in AUGMENTATIONS),
        key=lambda pair: pair[1],
    )
    if shift > SHIFT:
        found.append(
            f"the inputs of {layer} are {shift:.2f} standard deviations off those in its training; "
            f"usual is up to {SHIFT}; check --stem, --stride, --shortcut, --mean, --std, the "
            "images, and whether the layers can be told apart by their names"
        )
    top1, best = agreement(model, data, machine, seed)
    if best > 2 * top1 + 20:
        found.append(
            f"top-1 is {top1:.1f} %, and would be {best:.1f} % with the classes in another order"
        )
    return found


@torch.inference_mode()
def norm_shift(
    model: nn.Module, data: Data, machine: Machine, augment: str, seed: int = 0
) -> tuple[str, float]:
    """The BatchNorm whose inputs are farthest from its running mean, and how far.

    In its standard deviations, on average over its channels.
    """
    sums: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[name] = sums.get(name, 0) + inputs[0].float().mean((0, 2, 3)) / count

    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [m.register_forward_pre_hook(partial(note, name)) for name, m in norms.items()]
    some = data.train.draw(BATCHES * BATCH, seed)
    size = min(BATCH, len(some.labels))
    count = len(some.labels) // size
    padded = some._replace(images=pad_for_crops(some.images)).to(machine.device)
    for x, _ in epoch_batches(data, padded, size, seed, augment):
        with machine.autocast():
            model(x)
    for hook in hooks:
        hook.remove()
    shifts = {
        name: ((sums[name] - m.running_mean).abs() / (m.running_var + m.eps).sqrt()).mean().item()
        for name, m in norms.items()
    }
    return max(shifts.items(), key=lambda pair: pair[1])


@torch.inference_mode()
def agreement(model: nn.Module, data: Data, machine: Machine, seed: int = 0) -> tuple[float, float]:
    """Top-1 in percent; and if each prediction stood for the class that it mostly meets."""
    images, labels = data.train.draw(JUDGED, seed).to(machine.device)
    classes = len(data.classes)
    table = torch.zeros(classes, classes, dtype=torch.long)
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        with machine.autocast():
            guesses = model(normalize(x, data.mean, data.std)).argmax(1)
        table += (
            torch.bincount(guesses * classes + y, minlength=classes**2).reshape(classes, -1).cpu()
        )
    shares = 100 / len(labels) * torch.stack([table.diagonal(), table.amax(1)]).sum(1)
    return shares[0].item(), shares[1].item()
