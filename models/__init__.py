"""The networks: how to build one, describe it as data, count its cost, find its channels."""

from .cost import Cost, LayerCost, cost_of, layer_costs
from .foreign import adopt
from .groups import Group, Span, channel_groups
from .resnet import ARCHS, SHORTCUTS, STAGES, Spec, block_plans, build, new_spec, spec_of

__all__ = [
    "ARCHS",
    "SHORTCUTS",
    "STAGES",
    "Cost",
    "Group",
    "LayerCost",
    "Span",
    "Spec",
    "adopt",
    "block_plans",
    "build",
    "channel_groups",
    "cost_of",
    "layer_costs",
    "new_spec",
    "spec_of",
]
