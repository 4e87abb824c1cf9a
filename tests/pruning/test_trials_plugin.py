"""The trials of docs/trials_plugin.py do what docs/choices.md says of them."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from models import cost_of, new_spec, spec_of
from pruning import METHODS, Task, resolve
from pruning.allocation import not_kept
from pruning.surgery import logit_difference
from tests.conftest import lively
from utils.cli import load_plugins

STEPS = 64


@pytest.fixture(autouse=True)
def _plugin():
    ours = dict(METHODS)
    load_plugins(["--plugin", str(Path(__file__).parents[2] / "docs/trials_plugin.py")])
    yield
    METHODS.clear()
    METHODS.update(ours)


def trained(name, until, **flags):
    """A thin network after `until` of STEPS steps on noise in four epochs, and its method."""
    model = lively(new_spec(20, 10, width=4))
    method = METHODS[name](resolve({"method": name, "ratio": 0.5, **flags}))
    method.prune(model, Task(cost_of(spec_of(model))))
    method.on_start(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(until):
        x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        method.on_gradients(model)
        optimizer.step()
        method.on_step(model, optimizer, step, STEPS)
        if (step + 1) % (STEPS // 4) == 0:
            method.on_epoch(model, (step + 1) / STEPS, [], lambda network: (0.0, 0.0))
    return model, method


def test_held_filters_move_before_half_time_and_are_gone_after_it():
    x = torch.randn(4, 3, 8, 8)
    for until, same in ((STEPS // 2 - 1, False), (STEPS // 2 + 1, True), (STEPS, True)):
        model, method = trained("held", until)
        slim, _ = method.finish(model)
        assert spec_of(slim)["widths"]["layer3.0.conv1"] == 8
        difference, largest = logit_difference(model, slim, x)
        assert (difference <= 1e-4 * largest) == same, until


def test_filters_and_batchnorms_shrink_before_their_channel_closes():
    model, method = trained("decayed", 6, ramp=(0.05, 0.15))
    usual, _ = trained("l1", 6, ramp=(0.05, 0.15), gradual=True)
    for name, kept in method.soon.items():
        gone = not_kept(model.get_submodule(name).out_channels, kept)
        assert gone.any()
        for layer in (name, name.replace("conv", "bn")):
            ours, theirs = (m.get_submodule(layer).weight[gone] for m in (model, usual))
            assert ours.norm() < 0.3 * theirs.norm(), layer
