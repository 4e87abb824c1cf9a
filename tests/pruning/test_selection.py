import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import channel_groups, cost_of, new_spec, spec_of
from pruning import METHODS, Task, name_of, resolve
from pruning.allocation import fast_multiple, not_kept
from pruning.criteria import Calibration, score
from pruning.selection import choose, cost_of_a_channel, shares, with_fast_widths
from pruning.surgery import cut_spec
from tests.conftest import lively


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=64))
def test_a_share_is_that_of_the_sum_of_all_that_score_at_least_as_much(values):
    scores = torch.tensor(values)
    found = shares(scores)
    order = sorted(range(len(values)), key=lambda i: (-scores[i].item(), i))
    for rank, i in enumerate(order):
        above = sum(scores[j].item() for j in order[: rank + 1])
        assert found[i].item() == pytest.approx(scores[i].item() / max(above, 1e-30), rel=1e-4)
    assert found[order[0]] == max(found)


def test_equal_scores_give_the_fewest_channels_to_the_layers_that_cost_most():
    model = lively(new_spec(20, 10))
    groups = [g for g in channel_groups(spec_of(model)) if g.scope == "inner"]
    flat = {g.name: torch.ones(g.size) for g in groups}
    config = resolve({"target_macs": 0.55, "scope": "inner"})
    _, kept, _ = choose(model, config, Task(cost_of(spec_of(model))), scores=flat)
    counts = {name: len(index) for name, index in kept.items()}
    # 1 / n = lambda * MACs^1.5, where a channel of each stage costs half of one in the stage before
    for early, late in (("layer1.1", "layer2.1"), ("layer2.1", "layer3.1")):
        ratio = counts[f"{late}.conv1"] / counts[f"{early}.conv1"]
        assert ratio == pytest.approx(2**1.5, rel=0.2)
    assert counts["layer2.0.conv1"] > counts["layer2.1.conv1"]  # its first convolution has a stride


def test_a_residual_channel_is_kept_where_an_inner_one_of_half_its_cost_is():
    model = lively(new_spec(32, 10, shortcut="B"))
    spec, groups = spec_of(model), channel_groups(spec_of(model))
    flat = {g.name: torch.ones(g.size) for g in groups}
    _, kept, _ = choose(model, resolve({"target_macs": 0.2}), Task(cost_of(spec)), scores=flat)
    cost, counts = cost_of_a_channel(spec, groups, 32), {n: len(k) for n, k in kept.items()}
    inner, residual = "layer1.1.conv1", "layer1.residual"
    expected = (2 * cost[inner] / cost[residual]) ** 1.5
    assert counts[residual] / counts[inner] == pytest.approx(expected, rel=0.35)


@settings(max_examples=15, deadline=None)
@given(
    spec=st.sampled_from([new_spec(20, 10), new_spec(26, 10, arch="resnet_de", width=16)]),
    scope=st.sampled_from(["inner", "all"]),
    criterion=st.sampled_from(["l1", "bn", "random"]),
    target=st.floats(0.5, 0.95),
)
def test_a_target_of_macs_is_met(spec, scope, criterion, target):
    model = lively(spec)
    how = {"scope": scope, "criterion": criterion, "allocation": "cost", "min_keep": 1}
    method = METHODS["l1"](resolve({**how, "target_macs": target}))
    slim = method.prune(model, Task(cost_of(spec))).network
    groups = [g for g in channel_groups(spec) if scope == "all" or g.scope == "inner"]
    macs = cost_of_a_channel(spec, groups, 32)
    one = max(len(g.producers) * macs[g.name] for g in groups)
    assert abs(cost_of(spec_of(slim)).macs - target * cost_of(spec).macs) <= one


@pytest.mark.parametrize("criterion", ["random", "bn", "fpgm"])
def test_with_cost_a_criterion_says_which_channels_go_and_the_norms_how_many(criterion):
    model = lively(new_spec(20, 10))
    task = Task(cost_of(spec_of(model)))
    _, usual, _ = choose(model, resolve({"target_macs": 0.4}), task)
    _, kept, _ = choose(model, resolve({"target_macs": 0.4, "criterion": criterion}), task)
    assert {n: len(k) for n, k in kept.items()} == {n: len(k) for n, k in usual.items()}
    scores = score(model, channel_groups(spec_of(model)), criterion, Calibration())
    for name, index in kept.items():
        gone = not_kept(len(scores[name]), index)
        assert not gone.any() or scores[name][index].min() >= scores[name][gone].max()
    # What is closed goes before all others, even if all score less than nothing.
    closed = {"layer3.1.conv1": not_kept(64, kept["layer3.1.conv1"])}
    below = {name: values - 1e3 for name, values in scores.items()}
    _, later, _ = choose(
        model, resolve({"target_macs": 0.4, "criterion": criterion}), task, 1.0, below, closed
    )
    assert not set(later["layer3.1.conv1"].tolist()) & set(
        closed["layer3.1.conv1"].nonzero()[:, 0].tolist()
    )


@pytest.mark.parametrize(
    ("width", "flags", "multiple"),
    [
        (64, {"target_macs": 0.5}, 16),
        (64, {"target_macs": 0.5, "round_to": 1}, 1),
        (64, {"target_params": 0.5, "round_to": 8}, 8),
        (64, {"ratio": 0.4}, 1),
        (16, {"target_macs": 0.5}, 1),  # thin: single channels are worth more than speed
    ],
)
def test_a_target_rounds_the_widths_of_a_wide_network(width, flags, multiple):
    model = lively(new_spec(20, 10, width=width))
    config = with_fast_widths(resolve(flags), spec_of(model))
    _, kept, _ = choose(model, config, Task(cost_of(spec_of(model))))
    assert math.gcd(*(len(index) for index in kept.values())) == multiple
    # Known from then on, as data; a name tells it only where it is not usual.
    assert config.round_to in (multiple, None)
    assert ("by" in name_of([config])) == ("round_to" in flags)


@pytest.mark.parametrize(
    ("spec", "multiple"),
    [
        (new_spec(50, 10), 16),
        (new_spec(20, 10), 4),  # no more than a quarter of 16 channels
        (new_spec(20, 10, width=2), 1),
        (new_spec(20, 10, width=12), 2),  # 3 would be no faster than any width
        (new_spec(26, 10, arch="resnet_de"), 16),  # the 4 of squeeze-and-excitation aside
    ],
)
def test_fast_multiple(spec, multiple):
    assert fast_multiple(channel_groups(spec)) == multiple


@pytest.mark.parametrize("spec", [new_spec(32, 10), new_spec(26, 10, arch="resnet_de", width=16)])
def test_a_channel_costs_what_cutting_it_saves(spec):
    groups = channel_groups(spec)
    macs, params = (cost_of_a_channel(spec, groups, 24, name) for name in ("macs", "params"))
    for group in groups:
        slim = cut_spec(spec, {group.name: torch.arange(1, group.size)})
        saved = cost_of(spec, 24).macs - cost_of(slim, 24).macs
        assert macs[group.name] * len(group.producers) == pytest.approx(saved)
        weights = cost_of(spec, 24).params - cost_of(slim, 24).params
        assert params[group.name] * len(group.producers) == pytest.approx(weights, rel=0.15)
