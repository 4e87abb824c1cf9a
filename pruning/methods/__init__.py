"""The ways of pruning, by the name that --method takes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from . import filters, soft, weight
from .base import Method, Pruned, State, Task
from .masks import apply_masks, hold_masks

METHODS: dict[str, Method] = {
    "l1": filters.METHOD,
    "soft": soft.METHOD,
    "weight": weight.METHOD,
}


Settle = Callable[[nn.Module], nn.Module]


def _active(state: State) -> Method:
    """The method of a record; where it has carried out its plan, only its masks are held."""
    method = METHODS[state["method"]]
    if method.planned and "plan" not in state:
        return Method(method.prune, after_step=hold_masks)
    return method


def hooks(model: nn.Module, state: State | None, settle: Settle | None = None) -> dict[str, Any]:
    """What a training loop needs to let the method of a checkpoint's record take part.

    Without a record the loop is on its own. Masks in the record are applied at once. `settle`
    re-estimates the statistics of a network's BatchNorms.
    """
    if not state:
        return {}
    method = _active(state)
    apply_masks(model, state.get("masks", {}))
    found: dict[str, Any] = {"state": state}
    for name in ("before_step", "after_step", "after_epoch"):
        if hook := getattr(method, name):
            found[name] = partial(hook, model, state)
    if method.finish:
        found["finish"] = lambda: finish(model, state, settle)[0]
    return found


def finish(model: nn.Module, state: State, settle: Settle | None = None) -> tuple[nn.Module, State]:
    """The network as it would be handed over now, and its record."""
    method = _active(state)
    if not method.finish:
        return model, state
    network, state = method.finish(model, state)
    return (settle(network) if settle and method.settle else network), state


__all__ = ["METHODS", "Method", "Pruned", "State", "Task", "finish", "hooks"]
