import math

import pytest
import torch
from torch import nn

from models import build, channel_groups, new_spec, spec_of
from pruning import criteria
from pruning.criteria import CRITERIA, Calibration, by_filter, score
from tests.conftest import lively

SPEC = new_spec(26, 7, arch="resnet_de", width=8)


def images(count=64, batch=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 16, 16, generator=generator)
    y = torch.randint(7, (count,), generator=generator)
    return lambda: zip(x.split(batch), y.split(batch), strict=True)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_group_gets_finite_scores(criterion):
    model = lively(SPEC)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    groups = channel_groups(SPEC)
    scores = score(model, groups, criterion, Calibration(0, images()))
    for group in groups:
        assert scores[group.name].shape == (group.size,)
        assert scores[group.name].isfinite().all()
        assert not scores[group.name].requires_grad
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_norms_by_hand():
    w = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
    assert criteria.l1(w).tolist() == [7.0, 1.0]
    assert criteria.l2(w).tolist() == [5.0, 1.0]


def test_fpgm_prefers_to_lose_the_filter_in_the_middle():
    w = torch.tensor([[0.0, 0.0], [10.0, 0.0], [5.0, 1.0], [0.0, 10.0]])
    distances = criteria.fpgm(w)
    assert distances.argmin() == 2
    assert distances[0].item() == pytest.approx(10 + math.hypot(5, 1) + 10)


def test_bn_by_hand():
    model = lively(new_spec(20, 7))
    group = next(g for g in channel_groups(spec_of(model)) if g.name == "layer1.0.conv1")
    with torch.no_grad():
        model.layer1[0].bn1.weight[3] = -9.0
    found = score(model, [group], "bn")["layer1.0.conv1"]
    assert found[3] == 9.0
    assert found.argmax() == 3


def test_taylor_estimates_the_squared_loss_of_removal():
    """Of one filter of a network that is linear in it, the estimate is exact in sign and scale."""
    model = lively(new_spec(20, 7, width=4))
    batches = images(32, 32)
    group = next(g for g in channel_groups(spec_of(model)) if g.name == "layer3.2.conv1")
    found = score(model, [group], "taylor", Calibration(0, batches))[group.name]
    ((x, y),) = batches()
    conv = model.layer3[2].conv1
    conv.weight.grad = None
    nn.functional.cross_entropy(model(x), y).backward()
    expected = (conv.weight * conv.weight.grad).flatten(1).sum(1).square()
    torch.testing.assert_close(found, expected.detach())
    # The derivative of the loss along "this filter shrinks" is that sum, by finite differences.
    step, losses = 1e-3, []
    with torch.no_grad():
        for factor in (1 - step, 1 + step):
            kept = conv.weight[5].clone()
            conv.weight[5] *= factor
            losses.append(nn.functional.cross_entropy(model(x).double(), y).item())
            conv.weight[5] = kept
    slope = (losses[1] - losses[0]) / (2 * step)
    assert slope**2 == pytest.approx(found[5].item(), rel=0.05, abs=1e-6)


def test_random_depends_on_the_seed_alone():
    groups = channel_groups(SPEC)
    a, b = (score(lively(SPEC, i), groups, "random", Calibration(5)) for i in range(2))
    other = score(lively(SPEC), groups, "random", Calibration(6))
    assert all(torch.equal(a[g.name], b[g.name]) for g in groups)
    assert not torch.equal(a["layer1.0.conv1"], other["layer1.0.conv1"])


def test_adding_a_criterion_is_one_function_and_one_entry(monkeypatch):
    def largest(w):
        return w.abs().amax(1)

    monkeypatch.setitem(CRITERIA, "largest", by_filter(largest))
    model = build(new_spec(20, 7))
    group = channel_groups(spec_of(model))[1]
    found = score(model, [group], "largest")[group.name]
    expected = model.get_submodule(group.name).weight.flatten(1).abs().max(1).values
    torch.testing.assert_close(found, expected.detach())


def test_groups_without_batchnorm_compare_with_the_others():
    model = lively(SPEC)
    scores = score(model, channel_groups(SPEC), "bn")
    bare = torch.cat([own for name, own in scores.items() if ".se." in name])
    others = torch.cat([own for name, own in scores.items() if ".se." not in name])
    assert bare.mean().item() == pytest.approx(others.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "function", [lambda w: w.abs(), lambda w: w.sum(1) * float("nan"), lambda w: w.sum()]
)
def test_a_criterion_gives_a_finite_score_for_each_channel(function, monkeypatch):
    model = lively(new_spec(20, 10, width=4))
    monkeypatch.setitem(CRITERIA, "odd", by_filter(function))
    groups = channel_groups(spec_of(model))
    with pytest.raises(ValueError, match=r"a criterion gives \(.*\) scores|does not give 4 finite"):
        score(model, groups, "odd")
