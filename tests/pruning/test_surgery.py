import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build, channel_groups, cost_of, new_spec, spec_of
from pruning.allocation import allocate, select
from pruning.criteria import CRITERIA, Calibration, score
from pruning.surgery import cut, cut_spec, logit_difference, mask_channels
from tests.conftest import lively

NETWORKS = {
    "18": new_spec(18, 7, width=8),
    "34": new_spec(34, 7, width=8),
    "26": new_spec(26, 7, width=8),
    "50": new_spec(50, 7, width=8),
    "50 imagenet": new_spec(50, 7, width=8, stem="imagenet"),
    "20 A": new_spec(20, 7),
    "20 A-end": new_spec(20, 7, shortcut="A-end"),
    "20 B": new_spec(20, 7, shortcut="B"),
    "56 A": new_spec(56, 7),
    "26 de": new_spec(26, 7, arch="resnet_de", width=8),
    "50 de": new_spec(50, 7, arch="resnet_de", width=8),
}


@settings(max_examples=50)
@given(
    network=st.sampled_from(sorted(NETWORKS)),
    scope=st.sampled_from(["inner", "all"]),
    ratio=st.floats(0, 0.95),
    allocation=st.sampled_from(["layer", "global", "sensitivity"]),
    criterion=st.sampled_from(sorted(CRITERIA)),
    seed=st.integers(0, 1000),
)
def test_slim_equals_silenced(network, scope, ratio, allocation, criterion, seed):
    model = lively(NETWORKS[network], seed)
    groups, _ = select(channel_groups(spec_of(model)), [], scope)
    batch = torch.randn(4, 3, 32, 32), torch.randint(7, (4,))
    scores = score(model, groups, criterion, Calibration(seed, lambda: [batch]))
    drops = {g.name: {"0.3": i % 5, "0.7": 10 + i % 7} for i, g in enumerate(groups)}
    kept = allocate(groups, scores, ratio, allocation, sensitivity=drops)
    slim, masked = cut(model, kept), mask_channels(model, kept)
    difference, largest = logit_difference(masked, slim, torch.randn(4, 3, 32, 32))
    assert difference <= 1e-4 * largest
    assert spec_of(slim) == cut_spec(spec_of(model), kept)


@settings(max_examples=25)
@given(data=st.data(), network=st.sampled_from(["20 A", "20 A-end", "26", "26 de"]))
def test_any_choice_of_channels_can_be_cut(data, network):
    """Not only what a criterion would choose: also all but one channel, or one side of a pad."""
    model = lively(NETWORKS[network])
    kept = {}
    for group in channel_groups(spec_of(model)):
        chosen = data.draw(st.sets(st.integers(0, group.size - 1), min_size=1), label=group.name)
        kept[group.name] = torch.tensor(sorted(chosen))
    slim = cut(model, kept)
    difference, largest = logit_difference(
        mask_channels(model, kept), slim, torch.randn(2, 3, 32, 32)
    )
    assert difference <= 1e-4 * largest


def test_silencing_the_filters_alone_is_not_enough():
    """The trap of every masked "pruned" network: a BatchNorm emits its shift all the same."""
    model = lively(NETWORKS["20 A"])
    kept = {"layer1.0.conv1": torch.arange(8)}
    filters_only = copy.deepcopy(model)
    with torch.no_grad():
        filters_only.layer1[0].conv1.weight[8:] = 0
    x = torch.randn(4, 3, 32, 32)
    wrong, largest = logit_difference(filters_only, cut(model, kept), x)
    right, _ = logit_difference(mask_channels(model, kept), cut(model, kept), x)
    assert wrong > 1e-2 * largest
    assert right <= 1e-5 * largest


def test_nothing_is_mutated():
    model = lively(NETWORKS["26"]).train()
    before = copy.deepcopy(model.state_dict())
    kept = {"layer1.0.conv1": torch.tensor([1, 3])}
    slim = cut(model, kept)
    with torch.no_grad():
        for parameter in (*slim.parameters(), *mask_channels(model, kept).parameters()):
            parameter.zero_()
    assert slim.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_kept_channels_keep_their_weights():
    model = lively(NETWORKS["20 A"])
    kept = {"layer2.0.conv1": torch.tensor([4, 9, 30])}
    slim = cut(model, kept)
    old, new = model.layer2[0], slim.layer2[0]
    torch.testing.assert_close(new.conv1.weight, old.conv1.weight[[4, 9, 30]])
    torch.testing.assert_close(new.bn1.running_var, old.bn1.running_var[[4, 9, 30]])
    torch.testing.assert_close(new.conv2.weight, old.conv2.weight[:, [4, 9, 30]])


def test_a_cut_network_trains():
    model = build(NETWORKS["20 A"])
    slim = cut(model, {"layer1.residual": torch.tensor([0, 5])})
    slim(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in slim.parameters())


@pytest.mark.parametrize(
    ("index", "message"),
    [([], "all of its 16"), ([3, 3], "ascend"), ([5, 2], "ascend"), ([16], "ascend")],
)
def test_impossible_cuts_are_refused(index, message):
    kept = {"layer1.0.conv1": torch.tensor(index, dtype=torch.long)}
    for operation in (cut, mask_channels):
        with pytest.raises(ValueError, match=message):
            operation(lively(NETWORKS["20 A"]), kept)
    with pytest.raises(ValueError, match="no such"):
        cut(lively(NETWORKS["20 A"]), {"layer7": torch.tensor([0])})


# Li et al. 2017 (arXiv 1608.08710), table 1; the layers that its section 4.2 skips.
LI = {
    "A": ([0.1, 0.1, 0.1], "layer1.7 layer2.0 layer3.0 layer3.8", 1.12e8, 7.7e5),
    "B": ([0.6, 0.3, 0.1], "layer1.7 layer1.8 layer2.0 layer2.7 layer3.0 layer3.8", 9.09e7, 7.3e5),
}


@pytest.mark.parametrize("variant", LI)
def test_resnet56_of_li_et_al(variant):
    ratios, skip, macs, params = LI[variant]
    model = build(new_spec(56, 10))
    groups, _ = select(channel_groups(spec_of(model)), skip.split(), "inner")
    kept = allocate(groups, score(model, groups, "l1"), ratios)
    cost = cost_of(spec_of(cut(model, kept)))
    assert cost.macs == pytest.approx(macs, rel=0.005)
    assert cost.params == pytest.approx(params, rel=0.01)


def test_l1_scores_by_hand():
    model = build(new_spec(20, 10))
    groups = {g.name: g for g in channel_groups(spec_of(model))}
    inner = score(model, [groups["layer1.0.conv1"]], "l1")["layer1.0.conv1"]
    expected = model.layer1[0].conv1.weight.detach().numpy()
    assert inner[3].item() == pytest.approx(abs(expected[3]).sum(), rel=1e-5)
    # A residual's channel is scored by all that write into it: 10 convolutions of three stages.
    residual = score(model, [groups["layer1.residual"]], "l1")["layer1.residual"]
    weights = [model.conv1.weight[5]] + [block.conv2.weight[5] for block in model.layer1]
    weights += [block.conv2.weight[8 + 5] for block in model.layer2]
    weights += [block.conv2.weight[16 + 8 + 5] for block in model.layer3]
    assert residual[5].item() == pytest.approx(sum(w.abs().sum().item() for w in weights), rel=1e-5)
