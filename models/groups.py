"""Which channels of a network must be cut together."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from .resnet import Spec, block_plans


class Span(NamedTuple):
    """Where the channels of a group sit in one layer, in the order of the group."""

    layer: str
    channels: tuple[int, ...]


class Group(NamedTuple):
    """Channels that exist together or not at all.

    An *inner* group lives inside a block. A *stream* group runs along the residual sum: all
    convolutions that add to it produce it, and all that read from it consume it.
    """

    name: str
    scope: str  # "inner" or "stream"
    stage: int  # 1-based; the stem counts as stage 1
    size: int
    producers: tuple[Span, ...]  # convolutions: output channels
    norms: tuple[Span, ...]  # BatchNorms behind the producers
    consumers: tuple[Span, ...]  # convolutions and the classifier: input channels


class _Walk:
    """Collects the spans of each group on one walk through the network.

    `Stream` below: a list that names, for every channel of an activation, its group.
    """

    def __init__(self) -> None:
        self.groups: dict[str, dict] = {}

    def open(self, name: str, scope: str, stage: int, size: int) -> list[str]:
        fields = {"name": name, "scope": scope, "stage": stage, "size": size}
        self.groups[name] = {**fields, "producers": [], "norms": [], "consumers": []}
        return [name] * size

    def note(self, role: str, layer: str, stream: list[str]) -> None:
        for group in dict.fromkeys(stream):
            channels = tuple(i for i, name in enumerate(stream) if name == group)
            self.groups[group][role].append(Span(layer, channels))

    def produce(self, conv: str, bn: str, stream: list[str]) -> None:
        self.note("producers", conv, stream)
        self.note("norms", bn, stream)


def channel_groups(spec: Spec) -> list[Group]:
    """All channel groups of a network, in the order in which data flows through them.

    With projection shortcuts each stage has a stream of its own. A padding shortcut carries the
    channels of the earlier stage on: they then stay one group through the later stages, beside
    the channels that are new there.
    """
    walk, widths, plans = _Walk(), spec["widths"], block_plans(spec)
    # Where the first block has an identity shortcut, the stem writes into the stream of stage 1.
    stem = "layer1.stream" if plans[0].shortcut == "identity" else "stem.stream"
    stream = walk.open(stem, "stream", 1, widths["conv1"])
    walk.produce("conv1", "bn1", stream)
    for plan in plans:
        incoming, first, last = stream, plan.convs[0], plan.convs[-1]
        walk.note("consumers", f"{plan.name}.{first.name}", incoming)
        for conv, reader in pairwise(plan.convs):
            name = f"{plan.name}.{conv.name}"
            inner = walk.open(name, "inner", plan.stage, widths[name])
            walk.produce(name, f"{plan.name}.{conv.bn}", inner)
            walk.note("consumers", f"{plan.name}.{reader.name}", inner)
        size = widths[f"{plan.name}.{last.name}"]
        if plan.shortcut == "projection":
            stream = walk.open(f"layer{plan.stage}.stream", "stream", plan.stage, size)
            walk.note("consumers", f"{plan.name}.downsample.0", incoming)
            walk.produce(f"{plan.name}.downsample.0", f"{plan.name}.downsample.1", stream)
        elif plan.shortcut == "pad":
            before = spec["pads"][f"{plan.name}.downsample"]
            new = size - len(incoming)
            fresh = walk.open(f"layer{plan.stage}.stream", "stream", plan.stage, new)
            stream = fresh[:before] + incoming + fresh[before:]
        walk.produce(f"{plan.name}.{last.name}", f"{plan.name}.{last.bn}", stream)
    walk.note("consumers", "fc", stream)
    return [
        Group(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        for fields in walk.groups.values()
    ]
