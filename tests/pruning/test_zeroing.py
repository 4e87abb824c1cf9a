import pytest
import torch
from torch.nn import functional as F

from models import build, channel_groups, cost_of, new_spec, spec_of
from pruning import METHODS, Task, resolve
from pruning.surgery import logit_difference, mask_channels
from pruning.zeroing import SCHEDULES, asymptotic, zero_filters


def set_up(model, ratio, **given):
    config = resolve({"method": "soft", "ratio": ratio, "schedule": "asymptotic", **given})
    method = METHODS["soft"].variant(config.schedule)(config)
    method.prune(model, Task(cost_of(spec_of(model))))
    method.on_start(model)
    return method


def measure(network):
    return 12.5, 1.0


def test_asymptotic_goes_through_its_three_points():
    assert asymptotic(0) == 0
    assert asymptotic(1 / 8) == pytest.approx(0.75, abs=1e-9)
    assert asymptotic(1) == 1
    # a exp(-k t) + b: the distance to b falls by the same factor in equal times
    a, m, z = (asymptotic(t) for t in (0.25, 0.5, 0.75))
    assert (z - m) / (m - a) == pytest.approx((m - a) / (a - asymptotic(0)), rel=1e-6)
    assert SCHEDULES["he2018"](0.1) == 1


def test_filters_go_to_zero_and_batchnorm_stays():
    model = build(new_spec(20, 10))
    groups = channel_groups(spec_of(model))
    kept = {g.name: torch.arange(g.size // 2, g.size) for g in groups}
    before = model.layer1[0].bn1.weight.clone()
    zero_filters(model, groups, kept)
    assert not model.layer1[0].conv1.weight[:8].any()
    assert model.layer1[0].conv1.weight[8:].any()
    assert torch.equal(model.layer1[0].bn1.weight, before)


def train(model, method, epochs, lr=0.05):
    """Some epochs of soft pruning on noise; returns the log."""
    rows = []
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    torch.manual_seed(0)
    for epoch in range(epochs):
        model.train()
        for _ in range(4):
            x, y = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            method.on_gradients(model)
            optimizer.step()
        told = method.on_epoch(model, (epoch + 1) / epochs, rows, measure)
        rows.append({"epoch": epoch, **told})
    return rows


def test_the_ratio_follows_the_schedule_and_the_final_cut_has_it():
    model = build(new_spec(20, 10))
    method = set_up(model, 0.5)
    rows = train(model, method, 8)
    assert rows[0]["pruned_ratio"] == pytest.approx(0.375, abs=0.03)
    assert rows[-1]["pruned_ratio"] == pytest.approx(0.5, abs=0.01)
    ratios = [row["pruned_ratio"] for row in rows]
    assert ratios == sorted(ratios)
    slim, _ = method.finish(model)
    assert spec_of(slim)["widths"]["layer2.0.conv1"] == 16


def test_the_log_tells_what_moved():
    model = build(new_spec(20, 10))
    method = set_up(model, 0.5, schedule="he2018")
    rows = train(model, method, 5, lr=10.0)  # so high that any filter may come back
    total = sum(g.size for g in channel_groups(spec_of(model)) if g.scope == "inner")
    assert rows[0]["flipped"] == total // 2
    assert rows[0]["regrown"] == 0
    for row in rows[1:]:  # as many come back as go, at a constant ratio
        assert row["flipped"] == 2 * row["regrown"]
    assert any(row["regrown"] for row in rows)
    assert rows[-1]["overlap"] == 1.0
    assert all(0 <= row["overlap"] <= 1 for row in rows)
    assert min(row["overlap"] for row in rows) < 1.0
    assert all(row["top1_unmasked"] == 12.5 for row in rows)
    assert all(0 < row["threshold"] < 2 for row in rows)


def test_a_zeroed_filter_grows_back_where_the_data_want_it():
    """One filter alone can tell the two classes apart; it is zeroed, and must return."""
    torch.manual_seed(0)
    model = build(new_spec(20, 2)).train()
    torch.nn.init.constant_(model.layer1[0].bn1.bias, 0.5)  # at or below 0 the ReLU blocks it
    kept = {"layer1.0.conv1": torch.arange(1, 16)}
    groups = [g for g in channel_groups(spec_of(model)) if g.name in kept]
    zero_filters(model, groups, kept)
    weight = model.layer1[0].conv1.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        y = torch.randint(2, (16,))
        x = torch.randn(16, 3, 8, 8) + y.view(-1, 1, 1, 1)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert weight[0].norm() > 0.01
    silent = mask_channels(model, kept)
    assert not silent.layer1[0].bn1.weight[0]  # while masking is for good: no gradient reaches it


def test_what_counts_is_the_cut_network():
    model = build(new_spec(20, 10))
    method = set_up(model, 0.5)
    train(model, method, 3)
    x = torch.randn(4, 3, 32, 32)
    kept = {name: torch.tensor(index) for name, index in method.state.kept.items()}
    slim, _ = method.finish(model)
    zeroed, largest = logit_difference(model, slim, x)
    masked, _ = logit_difference(mask_channels(model, kept), slim, x)
    assert masked <= 1e-4 * largest
    assert zeroed > 10 * masked  # the shifts of the zeroed filters are still in there


@pytest.mark.parametrize("threshold", ["global", "layer"])
def test_global_and_layer_thresholds(threshold):
    model = build(new_spec(20, 10))
    with torch.no_grad():
        model.layer1[1].conv1.weight[:8] *= 0.01
    method = set_up(model, 0.2, allocation=threshold, schedule="he2018")
    train(model, method, 1, lr=1e-6)
    sizes = {name: len(index) for name, index in method.state.kept.items()}
    expected = {"global": 8, "layer": 12}[threshold]
    assert sizes["layer1.1.conv1"] == expected


def test_a_zeroed_filter_gets_no_more_gradient_than_the_others():
    """BatchNorm would multiply it by hundreds, and the weakest come back as the strongest."""
    torch.manual_seed(0)
    model = build(new_spec(20, 10)).train()
    method = set_up(model, 0.5)
    method.state.kept["layer1.0.conv1"] = list(range(8, 16))
    group = [g for g in channel_groups(spec_of(model)) if g.name == "layer1.0.conv1"]
    torch.nn.init.constant_(model.layer1[0].bn1.bias, 0.5)
    zero_filters(model, group, {"layer1.0.conv1": torch.arange(8, 16)})
    F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.randint(10, (8,))).backward()
    norms = model.layer1[0].conv1.weight.grad.flatten(1).norm(dim=1).clone()
    assert norms[:8].median() > 20 * norms[8:].median()  # what would happen
    method.on_gradients(model)
    tamed = model.layer1[0].conv1.weight.grad.flatten(1).norm(dim=1)
    assert tamed[:8].max() <= 1.01 * norms[8:].median()
    assert torch.equal(tamed[8:], norms[8:])
