import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from models import build, channel_groups, new_spec, spec_of
from pruning import METHODS, resolve
from pruning.masks import apply_masks, cut_masks
from pruning.surgery import logit_difference
from pruning.weight import cubic, idle_channels, masks_for, pattern_masks, weight_layers
from tests.conftest import lively

SPEC = new_spec(20, 10)
USUAL = resolve({"method": "weight"})


def weight_method(masks, **state):
    return METHODS["weight"](USUAL, METHODS["weight"].State(masks=masks, **state))


def density(masks):
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


@given(
    ratio=st.floats(0, 0.999),
    allocation=st.sampled_from(["layer", "global"]),
    criterion=st.sampled_from(["magnitude", "random"]),
)
def test_masks_remove_the_ratio_and_empty_no_layer(ratio, allocation, criterion):
    model = lively(SPEC)
    layers, _ = weight_layers(model, [])
    config = resolve({"method": "weight", "allocation": allocation, "criterion": criterion})
    masks = masks_for(model, layers, ratio, config)
    total = sum(m.numel() for m in masks.values())
    assert density(masks) == pytest.approx(1 - ratio, abs=(len(layers) + 1) / total)
    assert all(m.any() for m in masks.values())
    for name, mask in masks.items():
        if criterion == "magnitude" and not mask.all():
            weight = model.get_submodule(name).weight.detach().abs()
            assert weight[~mask].max() <= weight[mask].min()


def test_global_compares_all_layers():
    model = lively(SPEC)
    with torch.no_grad():
        model.layer3[0].conv1.weight *= 1e-3
    layers, _ = weight_layers(model, [])
    masks = masks_for(model, layers, 0.05, USUAL)
    assert density({"": masks["layer3.0.conv1"]}) < 0.3
    assert masks["fc"].all()


def test_layers_can_be_left_out():
    layers, protected = weight_layers(lively(SPEC), ["fc", "conv1", "layer2"])
    assert "layer1.0.conv1" in layers
    assert set(protected) >= {"fc", "conv1", "layer2.2.conv2"}
    with pytest.raises(ValueError, match="layer9"):
        weight_layers(lively(SPEC), ["layer9"])


def test_pruning_again_removes_from_what_is_left():
    model = lively(SPEC)
    layers, _ = weight_layers(model, [])
    first = masks_for(model, layers, 0.5, USUAL)
    apply_masks(model, first)
    second = masks_for(model, layers, 0.5, USUAL, first)
    assert density(second) == pytest.approx(0.25, abs=1e-3)
    assert all((second[name] <= first[name]).all() for name in layers)


@given(pattern=st.sampled_from([(2, 4), (1, 4), (4, 8)]), seed=st.integers(0, 99))
def test_a_pattern_holds_in_every_block(pattern, seed):
    kept, block = pattern
    model = lively(SPEC, seed)
    layers, _ = weight_layers(model, [])
    masks = pattern_masks(model, layers, kept, block)
    assert set(layers) - set(masks) == {"conv1"}  # three input channels do not divide
    for name, mask in masks.items():
        blocks = mask.movedim(1, -1).reshape(-1, block)
        assert (blocks.sum(1) == kept).all(), name
        weights = model.get_submodule(name).weight.detach().abs().movedim(1, -1).reshape(-1, block)
        lowest_kept = weights.masked_fill(~blocks, torch.inf).amin(1)
        assert (weights.masked_fill(blocks, 0).amax(1) <= lowest_kept).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_do_not_drift(dtype):
    """200 steps with momentum, weight decay and mixed precision."""
    model = lively(new_spec(20, 10, width=4)).train().to(memory_format=torch.channels_last)
    layers, _ = weight_layers(model, [])
    method = weight_method(masks_for(model, layers, 0.8, USUAL))
    masks = method.state.masks
    with torch.no_grad():  # a weight that is zero by chance, but not masked
        free = masks["layer1.0.conv1"].nonzero()[0].tolist()
        model.layer1[0].conv1.weight[tuple(free)] = 0.0
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    torch.manual_seed(0)
    for step in range(200):
        x, y = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.on_step(model, optimizer, step, 200)
        for name, mask in masks.items():
            weight = model.get_submodule(name).weight
            assert not weight[~mask].any()
            assert not optimizer.state[weight]["momentum_buffer"][~mask].any()
    assert model.layer1[0].conv1.weight[tuple(free)] != 0


def test_cubic_schedule_by_hand():
    assert [cubic(t) for t in (0, 0.5, 1, 2)] == [0, 0.875, 1, 1]


def test_gradual_pruning_follows_the_schedule_and_never_returns():
    model = build(new_spec(20, 10, width=4)).train()
    layers, _ = weight_layers(model, [])
    config = resolve({"method": "weight", "ratio": 0.8, "gradual": True})
    method = METHODS["weight"](config, METHODS["weight"].State(pending=True, layers=layers))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    last = None
    for step in range(40):
        F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.randint(10, (8,))).backward()
        optimizer.step()
        method.on_step(model, optimizer, step, 40)
        expected = 0.8 * cubic((step + 1) / 30)
        assert 1 - density(method.state.masks) == pytest.approx(expected, abs=0.01)
        if last:
            assert all((method.state.masks[n] <= last[n]).all() for n in layers)
        last = method.state.masks


SEPARABLE = new_spec(26, 7, arch="resnet_de", width=8)


@pytest.mark.parametrize("spec", [SPEC, new_spec(18, 7, width=8), SEPARABLE])
def test_idle_channels_are_removed_and_nothing_changes(spec):
    model = lively(spec)
    with torch.no_grad():  # every fifth filter is zero
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[torch.rand(len(module.weight)) < 0.2] = 0
                if module.bias is not None:
                    module.bias.normal_()
    x = torch.randn(4, 3, 32, 32)
    assert model(x).std(0).max() > 1e-3  # it still looks at its images
    slim, state = weight_method({}).finish(model)
    assert state.channels_removed > 20
    difference, largest = logit_difference(model, slim, x)
    assert difference <= 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("spec", [SPEC, new_spec(18, 7, width=8), SEPARABLE])
@pytest.mark.parametrize("ratio", [0.9, 0.99, 0.999])
def test_masks_fit_what_is_left_when_idle_channels_are_gone(spec, ratio):
    model = lively(spec)
    with torch.no_grad():  # some channels that are silent once their filters are zero
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias -= 0.5
    layers, _ = weight_layers(model, [])
    masks = masks_for(model, layers, ratio, USUAL)
    apply_masks(model, masks)
    slim, state = weight_method(masks).finish(model)
    difference, largest = logit_difference(model, slim, torch.randn(4, 3, 32, 32))
    assert difference <= 1e-5 * max(1.0, largest)
    assert state.channels_removed > 0 or ratio == 0.9
    for name, mask in state.masks.items():
        weight = slim.get_submodule(name).weight
        assert mask.shape == weight.shape
        assert not weight[~mask].any()


def test_a_channel_that_only_shifts_is_not_idle():
    model = lively(SPEC)
    with torch.no_grad():
        model.layer1[0].conv1.weight[2] = 0
        model.layer1[0].bn1.running_mean[2] = 0
        model.layer1[0].bn1.bias[2] = 0.7  # survives the ReLU
    assert spec_of(weight_method({}).finish(model)[0]) == SPEC
    with torch.no_grad():
        model.layer1[0].bn1.bias[2] = -0.7
    assert spec_of(weight_method({}).finish(model)[0])["widths"]["layer1.0.conv1"] == 15


NO, NEGATIVE, MIXED = (0.0, 0.0), (0.0, -1.0), (1.0, -1.0)  # first weight of a filter, the others


def set_filter(conv, weights):
    """Of channel 2."""
    first, others = weights
    conv.weight[2] = others
    conv.weight[2].view(-1)[0] = first


def set_norm(norm, shift, scale=2.0):
    """Let channel 2 leave with `shift` where zero goes in."""
    norm.weight[2], norm.running_mean[2], norm.running_var[2] = scale, 0.5, 4
    norm.bias[2] = 0.25 * scale + shift


def is_idle(model, group):
    kept = idle_channels(model).get(group)
    return kept is not None and 2 not in kept


@pytest.mark.parametrize(
    ("conv", "shift", "depthwise", "depthwise_shift", "idle"),
    [
        (NO, -0.1, MIXED, -0.1, True),
        (NO, 0.1, MIXED, -0.1, False),  # the shift goes through
        (NO, 0.1, NEGATIVE, -0.1, True),
        (NO, -0.1, MIXED, 0.1, False),
        (NEGATIVE, -0.1, MIXED, -0.1, True),
        (MIXED, -0.1, MIXED, -0.1, False),
        (MIXED, -0.1, NO, -0.1, True),
        (MIXED, 0.1, NO, 0.1, False),
    ],
)
@torch.no_grad()
def test_a_channel_is_idle_if_nothing_positive_can_leave_it(
    conv, shift, depthwise, depthwise_shift, idle
):
    model = lively(SEPARABLE)
    block = model.layer2[0]
    set_filter(block.conv1, conv)
    set_norm(block.bn1, shift)
    set_filter(block.conv2_dw, depthwise)
    set_norm(block.bn2_dw, depthwise_shift)
    assert is_idle(model, "layer2.0.conv1") == idle


@pytest.mark.parametrize(
    ("weights", "scale", "idle"),
    [(NEGATIVE, -2.0, False), (NEGATIVE, 2.0, True), (MIXED, 0.0, True), (MIXED, -2.0, False)],
)
@torch.no_grad()
def test_a_negative_scale_turns_a_filter_around(weights, scale, idle):
    model = lively(SPEC)
    set_filter(model.layer1[0].conv1, weights)
    set_norm(model.layer1[0].bn1, -0.1, scale)
    assert is_idle(model, "layer1.0.conv1") == idle


@torch.no_grad()
def test_what_a_norm_forgets_behind_a_filter_of_zeros_is_idle():
    model = lively(SPEC)
    set_filter(model.layer1[0].conv1, NO)
    norm = model.layer1[0].bn1
    for tensor in (norm.bias, norm.running_mean, norm.running_var):
        tensor[2] = 0
    assert is_idle(model, "layer1.0.conv1")


@pytest.mark.parametrize(
    ("weights", "bias", "idle"), [(NO, -1, True), (NO, 1, False), (NEGATIVE, -1, False)]
)
@torch.no_grad()
def test_inputs_of_squeeze_and_excitation_have_both_signs(weights, bias, idle):
    model = lively(SEPARABLE)
    squeeze = model.layer4[0].se.fc1
    set_filter(squeeze, weights)
    squeeze.bias[2] = bias
    assert is_idle(model, "layer4.0.se.fc1") == idle


@pytest.mark.parametrize("group", ["layer1.0.conv1", "layer1.residual"])
@torch.no_grad()
def test_a_channel_that_nothing_reads_is_idle(group):
    model = lively(SPEC)
    *others, last = next(g.consumers for g in channel_groups(SPEC) if g.name == group)
    for layer, channels in others:
        model.get_submodule(layer).weight[:, channels[2]] = 0
    assert not is_idle(model, group)
    model.get_submodule(last.layer).weight[:, last.channels[2]] = 0
    assert is_idle(model, group)


def test_masks_are_cut_with_their_weights():
    masks = masks_for(lively(SPEC), ["layer1.0.conv2"], 0.5, USUAL)
    kept = {"layer1.0.conv1": torch.tensor([0, 7])}
    cut = cut_masks(SPEC, kept, masks)
    assert torch.equal(cut["layer1.0.conv2"], masks["layer1.0.conv2"][:, [0, 7]])


def test_holding_masks_without_any_is_nothing():
    model = build(SPEC)
    before = model.conv1.weight.clone()
    apply_masks(model, {}, torch.optim.SGD(model.parameters()))
    assert torch.equal(model.conv1.weight, before)
