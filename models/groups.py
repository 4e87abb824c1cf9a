"""Which channels of a network must be cut together."""

from typing import NamedTuple

from .resnet import BlockPlan, Spec, block_plans


class Span(NamedTuple):
    """Where the channels of a group sit in one layer, in the order of the group."""

    layer: str
    channels: tuple[int, ...]


class Group(NamedTuple):
    """Channels that exist together or not at all.

    An *inner* group lives inside a block. A *residual* group runs along the residual stream: all
    convolutions that add to it produce it, and all that read from it consume it.
    """

    name: str
    scope: str  # "inner" or "residual"
    stage: int  # 1-based, of `stages`; the stem counts as stage 1
    stages: int
    size: int
    producers: list[Span]  # convolutions: output channels
    norms: list[Span]  # BatchNorms behind the producers and depthwise layers, in that order
    passthrough: list[Span]  # layers that work on each channel by itself, or scale it
    consumers: list[Span]  # convolutions and the classifier: input channels

    @property
    def layers(self) -> list[str]:
        """Names of all layers that the group has channels in."""
        return [s.layer for s in (*self.producers, *self.norms, *self.passthrough, *self.consumers)]


class _Walk:
    """Collects the spans of each group on one walk through the network.

    Activations are lists that name, for every channel, its group.
    """

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.groups: dict[str, Group] = {}

    def open(self, name: str, scope: str, stage: int, size: int) -> list[str]:
        self.groups[name] = Group(name, scope, stage, self.stages, size, [], [], [], [])
        return [name] * size

    def note(self, role: str, layer: str, channels: list[str]) -> None:
        for group in dict.fromkeys(channels):
            own = tuple(i for i, name in enumerate(channels) if name == group)
            getattr(self.groups[group], role).append(Span(layer, own))

    def produce(self, conv: str, bn: str, channels: list[str]) -> None:
        self.note("producers", conv, channels)
        self.note("norms", bn, channels)


def _residual_behind(walk: _Walk, plan: BlockPlan, incoming: list[str], spec: Spec) -> list[str]:
    """The channels of the residual stream behind a block."""
    size = spec["widths"][f"{plan.name}.{plan.convs[-1].name}"]
    if plan.shortcut == "identity":
        return incoming
    name = f"layer{plan.stage}.residual"
    if plan.shortcut == "pad":
        before = spec["pads"][f"{plan.name}.downsample"]
        fresh = walk.open(name, "residual", plan.stage, size - len(incoming))
        return fresh[:before] + incoming + fresh[before:]
    residual = walk.open(name, "residual", plan.stage, size)
    walk.note("consumers", f"{plan.name}.downsample.0", incoming)
    walk.produce(f"{plan.name}.downsample.0", f"{plan.name}.downsample.1", residual)
    return residual


def channel_groups(spec: Spec) -> list[Group]:
    """All channel groups of a network, in the order in which data flows through them.

    With projection shortcuts each stage has a residual of its own. A padding shortcut carries the
    channels of the earlier stage on: they then stay one group through the later stages, beside
    the channels that are new there.
    """
    widths, plans = spec["widths"], block_plans(spec)
    walk = _Walk(plans[-1].stage)
    # Where the first block has an identity shortcut, the stem writes into the residual of stage 1.
    stem = "layer1.residual" if plans[0].shortcut == "identity" else "stem.residual"
    residual = walk.open(stem, "residual", 1, widths["conv1"])
    walk.produce("conv1", "bn1", residual)
    for plan in plans:
        incoming, residual = residual, _residual_behind(walk, plan, residual, spec)
        channels = incoming
        for conv in plan.convs:
            name, bn = f"{plan.name}.{conv.name}", f"{plan.name}.{conv.bn}"
            if conv.depthwise:
                walk.note("passthrough", name, channels)
                walk.note("norms", bn, channels)
                continue
            walk.note("consumers", name, channels)
            last = conv is plan.convs[-1]
            channels = residual if last else walk.open(name, "inner", plan.stage, widths[name])
            walk.produce(name, bn, channels)
        if plan.se:
            squeeze, excite = f"{plan.name}.se.fc1", f"{plan.name}.se.fc2"
            squeezed = walk.open(squeeze, "inner", plan.stage, widths[squeeze])
            walk.note("consumers", squeeze, residual)
            walk.note("producers", squeeze, squeezed)
            walk.note("consumers", excite, squeezed)
            walk.note("passthrough", excite, residual)
    walk.note("consumers", "fc", residual)
    return list(walk.groups.values())
