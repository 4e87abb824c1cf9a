"""A plugin: the cut of Torch-Pruning (`pip install torch-pruning`) as a method, to compare with.

    python res50prune.py --plugin docs/torch_pruning_plugin.py --method tp-taylor --target-macs 0.4
    python finetune.py --plugin docs/torch_pruning_plugin.py --method tp-taylor --target-macs 0.4

Within blocks, over all layers at once, in small steps until the target is met; scored anew at
each step. tp-magnitude: L2-norms of a channel's weights in all its layers. tp-taylor: weight times
gradient there, on 512 training images.
"""

import copy
from types import MappingProxyType

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

from models import channel_groups, cost_of, spec_of
from pruning import METHODS, Method, Pruned, Task
from pruning.surgery import cut, mask_channels

STEPS = 100
IMPORTANCE = {
    "tp-magnitude": tp.importance.GroupMagnitudeImportance(p=2),
    "tp-taylor": tp.importance.GroupTaylorImportance(),
}


def _channels(norm: nn.BatchNorm2d) -> list[list[float]]:
    parts = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return torch.stack(parts, 1).tolist()


class TorchPruning(Method):
    flags = ("target_macs",)
    allocations = ("global",)
    defaults = MappingProxyType({"allocation": "global"})

    def prune(self, model: nn.Module, task: Task) -> Pruned:
        theirs = copy.deepcopy(model).eval().requires_grad_()
        inner = [g.producers[0].layer for g in channel_groups(spec_of(model)) if g.scope == "inner"]
        layers = (nn.Conv2d, nn.Linear)
        whole = [m for n, m in theirs.named_modules() if isinstance(m, layers) and n not in inner]
        pruner = tp.BasePruner(
            theirs,
            torch.randn(1, 3, task.image_size, task.image_size),
            importance=IMPORTANCE[self.config.method],
            global_pruning=True,
            pruning_ratio=0.99,
            max_pruning_ratio=0.9,
            iterative_steps=STEPS,
            ignored_layers=whole,
        )
        target = self.config.target_macs * task.dense.macs
        for _ in range(STEPS):
            if cost_of(spec_of(theirs), task.image_size).macs <= target:
                break
            theirs.zero_grad()
            for x, y in task.batches() if self.config.method == "tp-taylor" else ():
                F.cross_entropy(theirs(x), y).backward()
            pruner.step()
        kept = {}
        for group in channel_groups(spec_of(model)):
            if group.scope == "inner":  # all numbers of a BatchNorm tell which channel it was
                norm = group.norms[0].layer
                before, left = (_channels(m.get_submodule(norm)) for m in (model, theirs))
                kept[group.name] = torch.tensor([before.index(channel) for channel in left])
        self.state.kept = {name: index.tolist() for name, index in kept.items()}
        slim = cut(model, kept)
        return Pruned(slim, slim, mask_channels(model, kept), 0.0, [])


for name in IMPORTANCE:
    METHODS[name] = TorchPruning
