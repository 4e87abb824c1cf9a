"""`l1`: cut whole filters once, then train the smaller network (Li et al. 2017)."""

from functools import cache

from torch import nn

from models import Group, channel_groups, cost_of, spec_of

from .allocation import Kept, Limits, allocate, select, solve
from .config import PruningConfig
from .criteria import Calibration, normalize_scores, score
from .masks import cut_masks
from .method import Method, Pruned, Row, Task
from .surgery import cut, cut_spec, mask_channels


def choose(
    model: nn.Module, config: PruningConfig, task: Task
) -> tuple[float | list[float], Kept, list[Row]]:
    """The ratio, the kept indices, and a report on every group.

    Raises ValueError for a config that does not fit the network.
    """
    spec = spec_of(model)
    everything = channel_groups(spec)
    groups, protected = select(everything, config.skip, config.scope)
    if not groups:
        raise ValueError("--skip and --scope leave nothing to prune")
    limits = Limits(config.min_keep, multiple_of(config, task))
    calibration = Calibration(config.seed, task.batches)
    scores = score(model, groups, config.criterion, calibration)
    if config.allocation == "global":
        scores = normalize_scores(scores, config.criterion)

    def at(ratio: float | tuple[float, ...]) -> Kept:
        return allocate(groups, scores, ratio, config.allocation, limits, task.sensitivity)

    ratio = config.ratio
    for name in ("macs", "params"):
        if target := getattr(config, f"target_{name}"):

            def share(ratio: float, name: str = name) -> float:
                cost = cost_of(cut_spec(spec, at(ratio)), task.image_size)
                return getattr(cost, name) / getattr(task.dense, name)

            ratio = solve(share, target, name)
    if config.target_latency:
        if task.latency is None:
            raise ValueError("--target-latency needs a trained network: see res50prune.py")

        @cache  # a second look at the clock would say something else
        def latency(ratio: float) -> float:
            return task.latency(cut(model, at(ratio)))

        ratio = solve(latency, config.target_latency, "latency", precision=0.01, slack=0.05)
    kept = at(ratio)
    told = list(ratio) if isinstance(ratio, tuple) else ratio
    return told, kept, [_row(group, kept, protected, limits) for group in everything]


def multiple_of(config: PruningConfig, task: Task) -> int:
    """What widths are rounded to: what was asked for, or for a latency what the device likes."""
    return config.round_to or (task.multiple if config.target_latency else 1)


def _row(group: Group, kept: Kept, protected: dict[str, str], limits: Limits) -> Row:
    if group.name in protected:
        return group.name, group.size, group.size, protected[group.name]
    after = len(kept[group.name])
    at_floor = after == limits.floor(group.size) < group.size
    return group.name, group.size, after, "floor (--min-keep)" if at_floor else ""


def as_lists(kept: Kept) -> dict[str, list[int]]:
    """Kept indices as plain data for a checkpoint."""
    return {name: index.tolist() for name, index in kept.items()}


class Filters(Method):
    """Cut the channels that score lowest; what is left is an ordinary, smaller network."""

    def prune(self, model: nn.Module, task: Task) -> Pruned:
        ratio, kept, rows = choose(model, self.config, task)
        slim = cut(model, kept)
        masks = cut_masks(spec_of(model), kept, task.masks)
        self.state = self.State(as_lists(kept), masks)
        return Pruned(slim, slim, mask_channels(model, kept), ratio, rows)
