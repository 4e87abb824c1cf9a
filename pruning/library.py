"""One call that prunes a network: what stage 2 does, for use from other programs."""

from typing import Any

import torch
from torch import nn

from models import cost_of, costs, spec_of

from .config import METHODS, PruningConfig, method_class, resolve
from .criteria import Batches
from .filters import Filters
from .method import Pruned, Record, Task
from .refit import refit
from .soft import Soft
from .surgery import verify
from .weight import Weight

METHODS.update(l1=Filters, soft=Soft, weight=Weight)


def prune_step(
    model: nn.Module, config: PruningConfig, task: Task, earlier: Record | None = None
) -> tuple[Pruned, Record]:
    """Prune a network that `earlier` pruning may have left; it is not changed.

    Raises ValueError for a config that does not fit the network.
    """
    method = method_class(config)(config)
    pruned = method.prune(model, task)
    before, after = (costs(m, task.image_size)["effective_macs"] for m in (model, pruned.network))
    dense = earlier.dense if earlier else spec_of(model)
    steps = [*(earlier.steps if earlier else []), config]
    return pruned, Record(steps, pruned.ratio, dense, 1 - after / before, method.state)


def prune(
    model: nn.Module, image_size: int = 32, batches: Batches | None = None, **flags: Any
) -> tuple[nn.Module, Record]:
    """A smaller copy of a network of `models.build`, and how it was pruned.

    `flags` are those of res50prune.py by their names: `prune(model, target_macs=0.5)`.
    `batches` gives normalized images and labels to a criterion that wants them. Raises ValueError
    for flags that do not fit or whose pruning needs a training, RuntimeError if the copy computed
    something else than the masked original.
    """
    task = Task(cost_of(spec_of(model), image_size), image_size, batches)
    pruned, record = prune_step(model, resolve(flags), task)
    if record.state.pending:
        raise ValueError("this pruning happens while training: see finetune.py")
    device = next(model.parameters()).device
    x = torch.randn(4, 3, image_size, image_size, device=device)
    verify(pruned.reference, pruned.network, x)
    if record.steps[-1].refit:
        refit(model, pruned.network, record.state.kept_channels(), batches)
    return pruned.model, record
