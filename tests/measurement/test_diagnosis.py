"""Reasons are measured, so the networks here are such that one reason is plain."""

import pytest
import torch

from measurement.diagnosis import reasons, rounded, verdict
from models import build, new_spec
from utils.device import Machine

CPU = Machine(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("theoretical", "measured", "said"),
    [
        (2.0, 1.9, None),
        (2.0, 1.7, None),
        (1.5, 1.2, "speedup 1.20 for a MAC reduction of 1.50"),
        (1.02, 0.5, None),
        (2.0, 1.2, "speedup 1.20 for a MAC reduction of 2.00"),
        (2.0, 1.0, "speedup 1.00 for a MAC reduction of 2.00"),
        (2.0, 0.8, "speedup 0.80 for a MAC reduction of 2.00"),
    ],
)
def test_verdict(theoretical, measured, said):
    assert verdict(theoretical, measured) == said


def test_rounding_up_gives_a_network_that_runs():
    spec = new_spec(20, 10)
    widths = {name: width - 3 for name, width in spec["widths"].items()}
    wide = rounded({**spec, "widths": widths, "pads": {"layer2.0.downsample": 2}}, 8)
    assert set(wide["widths"].values()) == {16, 32, 64}
    build({**wide, "pads": dict.fromkeys(spec["pads"], 0)})(torch.randn(1, 3, 8, 8))


def test_a_tiny_network_on_one_small_image_is_all_overhead():
    spec = new_spec(56, 10, width=2)
    told = reasons(spec, spec, 0.0, (1, 3, 8, 8), "eager", CPU)
    assert any("single channel per layer" in line for line in told)
    assert not any("zero" in line for line in told)


def test_masks_are_named():
    spec = new_spec(20, 10, width=4)
    told = reasons(spec, spec, 0.9, (1, 3, 8, 8), "eager", CPU)
    assert any(line.startswith("90% of its parameters are zero") for line in told)


def test_cutting_inside_blocks_leaves_the_activations():
    dense = new_spec(26, 10, width=4)
    inner = {
        n: 1 if n.endswith(("conv1", "conv2")) and "." in n else w
        for n, w in dense["widths"].items()
    }
    told = reasons({**dense, "widths": inner}, dense, 0.0, (2, 3, 16, 16), "fused", CPU)
    assert any("activations" in line for line in told)
