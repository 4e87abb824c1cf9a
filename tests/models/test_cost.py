import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import build, cost_of, layer_costs, new_spec

# Published: torchvision, weiaicunzai/pytorch-cifar100, chenyaofo/pytorch-cifar-models, Li et al.
KNOWN = [
    (50, 100, None, 1_298_014_208, 23_705_252),
    (26, 100, None, 727_588_864, 14_143_396),
    (18, 100, None, 555_468_800, 11_220_132),
    (56, 100, "A", 125_491_456, 858_868),
    (20, 100, "A", 40_556_800, 275_572),
    (20, 100, "B", 40_818_944, 278_324),  # 40.82 M and 0.28 M
    (56, 10, "A", 125_485_696, 853_018),  # 1.25e8 and 8.5e5
    (110, 10, "A", 252_887_680, 1_727_962),  # 2.53e8 and 1.72e6 (Li truncates)
]


@pytest.mark.parametrize(("depth", "classes", "shortcut", "macs", "params"), KNOWN)
def test_exact_figures(depth, classes, shortcut, macs, params):
    assert cost_of(new_spec(depth, classes, shortcut=shortcut)) == (params, macs)


def test_separable_networks():
    assert cost_of(new_spec(26, 100, arch="resnet_de")) == (9_994_756, 462_757_888)
    assert cost_of(new_spec(50, 100, arch="resnet_de")) == (16_218_004, 767_713_280)


def test_one_separable_block_by_hand():
    """layer1.1 of depth 26: 256 -> 64 -> depthwise 64 -> 64 -> 256 channels on 32 x 32 pixels."""
    rows = layer_costs(new_spec(26, 100, arch="resnet_de"))
    block = {r.name: r for r in rows if r.name.startswith("layer1.1.")}
    pointwise = 256 * 64 + 64 * 64 + 64 * 256
    squeeze = 256 * 16 + 16 * 256
    macs = (pointwise + 64 * 9) * 32 * 32 + squeeze
    params = pointwise + 64 * 9 + squeeze + 16 + 256 + 2 * (64 + 64 + 64 + 256)
    assert sum(r.macs for r in block.values()) == macs
    assert sum(r.params for r in block.values()) == params


@pytest.mark.parametrize(
    ("arch", "depth"), [*(("resnet", d) for d in (18, 20, 26)), ("resnet_de", 26)]
)
@pytest.mark.parametrize(
    ("stem", "stride"), [("cifar", "3x3"), ("imagenet", "1x1"), ("cifar-pool", "3x3")]
)
@pytest.mark.parametrize("size", [32, 33])
def test_counters_agree(arch, depth, stem, stride, size):
    stride = stride if depth == 26 else "3x3"  # of a bottleneck
    spec = new_spec(depth, 10, arch=arch, width=8, stem=stem, stride=stride)
    model = build(spec).eval()
    cost = cost_of(spec, size)
    assert cost.params == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, size, size))
    assert counter.get_total_flops() == 2 * cost.macs  # it counts two operations per MAC


def test_thop_counts_normalization_and_pooling_on_top():
    from thop import profile

    spec = new_spec(50, 100)
    model = build(spec).eval()
    macs, _ = profile(copy.deepcopy(model), (torch.randn(1, 3, 32, 32),), verbose=False)
    rows = layer_costs(spec)
    # thop counts four operations for each element a BatchNorm sees, folded or not, and one for
    # each element that the average pool reads plus one for each that it writes.
    norms = 4 * sum(row.shape[0] * row.size**2 for row in rows if row.kind == "bn")
    pool = 2048 * (4 * 4 + 1)
    assert macs == 1_311_778_816
    assert macs - norms - pool == cost_of(spec).macs
