"""The ways of pruning, by the name that --method takes."""

from functools import partial
from typing import Any

from torch import nn

from . import filters, soft, weight
from .base import Method, Pruned, State, Task
from .masks import apply_masks

METHODS: dict[str, Method] = {
    "l1": filters.METHOD,
    "soft": soft.METHOD,
    "weight": weight.METHOD,
}


def hooks(model: nn.Module, state: State | None) -> dict[str, Any]:
    """What a training loop needs to let the method of a checkpoint's record take part.

    Without a record the loop is on its own. Masks in the record are applied at once.
    """
    if not state:
        return {}
    method = METHODS[state["method"]]
    apply_masks(model, state.get("masks", {}))
    found: dict[str, Any] = {"state": state}
    for name in ("after_step", "after_epoch"):
        if hook := getattr(method, name):
            found[name] = partial(hook, model, state)
    if method.finish:
        found["finish"] = lambda: method.finish(model, state)[0]
    return found


__all__ = ["METHODS", "Method", "Pruned", "State", "Task", "hooks"]
