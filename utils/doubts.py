"""Was a network read as it was trained? Signs on training images that it was not."""

from functools import partial

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .config import AUGMENTATIONS
from .data import Data, augmented, normalize
from .device import Machine, place
from .log import say

IMAGES, JUDGED = 512, 2000  # to look at BatchNorm's inputs, and at predictions
# Mean shift of a BatchNorm's inputs, in standard deviations. In sound files, ResNet-20 to 56 on
# CIFAR-100, the largest of all layers was 0.03 to 0.04. It was 0.3 to 0.6 with a max-pool too many,
# 0.6 to 1.5 with padding on the wrong side, 0.10 to 0.23 with the mean and deviation of ImageNet.
SHIFT = 0.08


def warn(checkpoint: Checkpoint, model: nn.Module, data: Data, machine: Machine) -> None:
    """Say what may be wrong with the network of a checkpoint, if it was trained elsewhere.

    It is left on the machine and in evaluation mode.
    """
    if checkpoint.stage != "elsewhere":
        return
    place(model, machine).eval()
    told = f"warning: {checkpoint.file}:"
    shift, layer = min(norm_shift(model, data, machine, how) for how in AUGMENTATIONS)
    if shift > SHIFT:
        say(
            f"{told} the inputs of {layer} are {shift:.2f} standard deviations off those in its "
            f"training; usual is up to {SHIFT}; check --stem, --stride, --shortcut, --mean, --std, "
            "the images, and whether the layers can be told apart by their names"
        )
    top1, best = agreement(model, data, machine)
    if best > 2 * top1 + 20:
        order = f"and would be {best:.1f} % with the classes in another order"
        say(f"{told} top-1 is {top1:.1f} %, {order}")


@torch.inference_mode()
def norm_shift(model: nn.Module, data: Data, machine: Machine, augment: str) -> tuple[float, str]:
    """How far the inputs of a BatchNorm are from its running mean, and which has the farthest.

    In its standard deviations, on average over its channels.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    means: dict[str, list[Tensor]] = {name: [] for name in norms}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        means[name].append(inputs[0].float().mean((0, 2, 3)))

    hooks = [m.register_forward_pre_hook(partial(note, name)) for name, m in norms.items()]
    for x, _ in augmented(data, IMAGES, 0, augment):
        with machine.autocast():
            model(x.to(machine.device))
    for hook in hooks:
        hook.remove()
    shifts = []
    for name, m in norms.items():
        off = (torch.stack(means[name]).mean(0) - m.running_mean).abs()
        shifts.append(((off / (m.running_var + m.eps).sqrt()).mean().item(), name))
    return max(shifts)


@torch.inference_mode()
def agreement(model: nn.Module, data: Data, machine: Machine) -> tuple[float, float]:
    """Top-1 in percent; and if each prediction stood for the class that it mostly meets."""
    images, labels = data.train.draw(JUDGED, 0).to(machine.device)
    classes = len(data.classes)
    with machine.autocast():
        logits = [model(normalize(x, data.mean, data.std)) for x in images.split(128)]
    pairs = torch.cat(logits).argmax(1) * classes + labels
    table = torch.bincount(pairs, minlength=classes**2).reshape(classes, -1)
    shares = 100 / len(labels) * torch.stack([table.diagonal(), table.amax(1)]).sum(1)
    return shares[0].item(), shares[1].item()
