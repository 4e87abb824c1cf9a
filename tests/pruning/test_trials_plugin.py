"""The trials of docs/trials_plugin.py do what docs/choices.md says of them."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from models import channel_groups, cost_of, new_spec, spec_of
from pruning import METHODS, Task, resolve
from pruning.allocation import keep_count, not_kept
from pruning.surgery import logit_difference
from tests.conftest import lively, step_on_noise
from utils.cli import load_plugins

STEPS = 64


@pytest.fixture(autouse=True)
def _plugin():
    ours = dict(METHODS)
    load_plugins(["--plugin", str(Path(__file__).parents[2] / "docs/trials_plugin.py")])
    yield
    METHODS.clear()
    METHODS.update(ours)


def trained(name, until, seed=0, **flags):
    """A thin network after `until` of STEPS steps on noise in four epochs, and its method."""
    model = lively(new_spec(20, 10, width=4), seed)
    method = METHODS[name](resolve({"method": name, "ratio": 0.5, **flags}))
    method.prune(model, Task(cost_of(spec_of(model))))
    method.on_start(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(until):
        step_on_noise(model, method, optimizer, step, STEPS)
        if (step + 1) % (STEPS // 4) == 0:
            method.on_epoch(model, (step + 1) / STEPS, [], lambda network: (0.0, 0.0))
    return model, method, optimizer


def test_held_filters_move_before_half_time_and_are_gone_after_it():
    x, chosen = torch.randn(4, 3, 8, 8), {}
    for until, same in ((STEPS // 2 - 1, False), (STEPS // 2 + 1, True), (STEPS, True)):
        model, method, _ = trained("held", until)
        slim, state = method.finish(model)
        assert spec_of(slim)["widths"]["layer3.0.conv1"] == 8
        difference, largest = logit_difference(model, slim, x)
        assert (difference <= 1e-4 * largest) == same, until
        assert bool(state.history) != same
        chosen[until] = state.kept
    assert chosen[STEPS] == chosen[STEPS // 2 + 1]


def test_a_choice_that_was_frozen_stays_whatever_the_norms_become():
    model, method, _ = trained("held", STEPS // 2)
    frozen = dict(method.state.kept)
    with torch.no_grad():
        for group in channel_groups(spec_of(model)):
            if group.scope == "inner":
                model.get_submodule(group.name).weight[frozen[group.name]] = 0
    method.on_epoch(model, 0.75, [], lambda network: (0.0, 0.0))
    assert method.state.kept == frozen


def test_filters_and_batchnorms_shrink_before_their_channel_closes():
    model, method, optimizer = trained("decayed", 6, ramp=(0.05, 0.15))
    usual, _, moving = trained("l1", 6, ramp=(0.05, 0.15), gradual=True)
    left = {"decayed": 0.0, "l1": 0.0}  # of the momentum of what shrinks
    for name, kept in method.state.soon.items():
        size = model.get_submodule(name).out_channels
        assert len(method.state.kept[name]) == size > len(kept) > size // 2 - 1  # still open
        gone = not_kept(size, kept)
        for layer in (name, name.replace("conv", "bn")):
            ours, theirs = (m.get_submodule(layer).weight for m in (model, usual))
            assert ours[gone].norm() < 0.3 * theirs[gone].norm(), layer
            left["decayed"] += optimizer.state[ours]["momentum_buffer"][gone].norm()
            left["l1"] += moving.state[theirs]["momentum_buffer"][gone].norm()
    assert left["decayed"] < 0.5 * left["l1"]


def test_what_shrinks_is_what_a_later_point_of_the_ramp_closes():
    model, method, _ = trained("decayed", 1, ramp=(0.05, 0.85))
    # A tenth of the training after step 1, (1/64 + 0.1 - 0.05) / 0.8 of the ramp are over.
    share = 1 - (1 - (1 / STEPS + 0.05) / 0.8) ** 3
    for name, kept in method.state.soon.items():
        assert len(kept) == keep_count(model.get_submodule(name).out_channels, share * 0.5)


def test_a_filter_behind_a_closed_gate_learns_as_if_it_were_open():
    x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    logits, gradients = [], []
    for name in ("soft", "straight"):
        model, method, _ = trained(name, 0)
        kept = method.state.kept | {"layer2.1.conv1": list(range(1, 8))}
        method.gates.close({name: torch.tensor(index) for name, index in kept.items()})
        logits.append(model.train()(x))
        F.cross_entropy(logits[-1], y).backward()
        gradients.append(model.layer2[1].conv1.weight.grad[0].norm().item())
    torch.testing.assert_close(*logits)
    assert gradients[0] == 0 < gradients[1]
