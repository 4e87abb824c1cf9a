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
    group: Group,
    scores: Scores,
    accuracy: Callable[[nn.Module], float],
    whole: float,
) -> dict[str, float]:
    """Ratio -> drop of `accuracy(network)` from `whole` when that fraction of the group is cut.

    Coupled channels are cut together: that is what a group is. Ratios are keys, as text, so that
    the result is JSON.
    """
    return {
        f"{ratio:g}": whole - accuracy(cut(model, allocate([group], scores, ratio)))
        for ratio in RATIOS
    }
