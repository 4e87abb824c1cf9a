"""`l1`: cut whole filters, at once or on a ramp, then train the smaller network."""

from torch import nn

from models import spec_of

from .config import ALLOCATIONS
from .gates import Gated
from .masks import cut_masks
from .method import FILTER_FLAGS, Pruned, Task
from .selection import as_lists, choose
from .surgery import cut, mask_channels


class Filters(Gated):
    """Cut the channels that score lowest; what is left is an ordinary, smaller network.

    At once (Li et al. 2017, arXiv 1608.08710) or, with --gradual, while training: then what is
    closed stays closed until it is cut out.
    """

    flags = (*FILTER_FLAGS, "gradual", "ramp", "refit")
    unfit = ("gate",)
    allocations = ALLOCATIONS

    def prune(self, model: nn.Module, task: Task) -> Pruned:
        if self.config.gradual:
            return super().prune(model, task)
        if self.config.refit and (task.batches is None or task.masks):
            raise ValueError("--refit needs training images, and a network without weight masks")
        ratio, kept, rows = choose(model, self.config, task)
        slim = cut(model, kept)
        masks = cut_masks(spec_of(model), kept, task.masks)
        self.state = self.State(as_lists(kept), masks)
        return Pruned(slim, slim, mask_channels(model, kept), ratio, rows)
