"""The networks: how to build one, describe it as data, count its cost, find its channels."""

from .cost import Cost, LayerCost, cost_of, costs, layer_costs
from .groups import Group, Span, channel_groups
from .import_weights import Contradiction, import_weights
from .resnet import (
    ARCHS,
    SHORTCUTS,
    STEMS,
    STRIDES,
    Spec,
    block_plans,
    build,
    complete,
    is_usual,
    new_spec,
    spec_of,
)
