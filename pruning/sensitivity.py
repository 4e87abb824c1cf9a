"""How much accuracy does it cost to cut one group of channels, all others left whole?"""

from collections.abc import Callable

from torch import nn

from models import Group

from .allocation import allocate
from .criteria import Scores
from .surgery import cut

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def measure(
    model: nn.Module,
    groups: list[Group],
    scores: Scores,
    accuracy: Callable[[nn.Module], float],
    progress: Callable[[list[Group]], list[Group]] = list,
) -> dict[str, dict[str, float]]:
    """Group -> ratio -> drop of `accuracy(network)` when that fraction of the group is cut.

    Coupled channels are cut together: that is what a group is. Ratios are keys, as text, so that
    the result is JSON.
    """
    whole = accuracy(model)
    return {
        group.name: {
            f"{ratio:g}": whole - accuracy(cut(model, allocate([group], scores, ratio)))
            for ratio in RATIOS
        }
        for group in progress(groups)
    }
