import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune as masking

from models import build, channel_groups, cost_of, new_spec, spec_of
from pruning import METHODS, PruningConfig, Record, State, Task, name_of, prune, prune_step, resolve
from pruning.criteria import normalize_scores
from tests.command import ROOT
from tests.conftest import lively

NARROW = new_spec(20, 10, width=8)


def network():
    return lively(NARROW)


def test_three_lines_cut_a_network():
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    slim, record = prune(model, target_macs=0.5, criterion="l2", scope="all", image_size=16)
    assert 0.4 < record.share_cut < 0.6
    assert record.steps[0].criterion == "l2"
    assert record.dense == spec_of(model)
    assert sum(spec_of(slim)["widths"].values()) < sum(record.dense["widths"].values())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_second_pruning_goes_on_from_the_first():
    model = network()
    masked, first = prune(model, method="weight", ratio=0.5, image_size=16)
    slim, second = prune(masked, target_macs=0.5, image_size=16, earlier=first)
    assert [step.method for step in second.steps] == ["weight", "l1"]
    assert second.state.masks.keys() == first.state.masks.keys()
    for name, mask in second.state.masks.items():
        assert torch.equal(mask, slim.get_submodule(name).weight != 0)
    with torch.no_grad():  # as a training that knows no masks would
        slim.layer1[0].conv1.weight += 1
    slimmer, third = prune(slim, target_macs=0.25, image_size=16, earlier=second)
    for name, mask in third.state.masks.items():
        assert not slimmer.get_submodule(name).weight[~mask].any()
    share = cost_of(spec_of(slimmer), 16).macs / cost_of(spec_of(model), 16).macs
    assert share == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("spec", [new_spec(32, 10, width=8), new_spec(20, 10, width=4)])
@pytest.mark.parametrize("how", [{"method": "weight", "ratio": 0.5}, {"ratio": 0.3}])
def test_a_record_of_another_network_is_refused(spec, how):
    _, record = prune(lively(spec), image_size=16, **how)
    with pytest.raises(ValueError, match="record of another network"):
        prune(network(), ratio=0.3, image_size=16, earlier=record)


def test_the_record_of_the_small_network_is_refused_with_the_large_one():
    model = network()
    _, record = prune(model, ratio=0.3, image_size=16)
    with pytest.raises(ValueError, match="record of another network"):
        prune(model, ratio=0.3, image_size=16, earlier=record)


def test_a_record_of_two_prunings_is_refused_with_an_earlier_network():
    model = network()
    once, first = prune(model, ratio=0.3, image_size=16)
    twice, second = prune(once, ratio=0.3, image_size=16, earlier=first)
    assert len(prune(twice, ratio=0.3, image_size=16, earlier=second)[1].steps) == 3
    for other in (model, once):
        with pytest.raises(ValueError, match="record of another network"):
            prune(other, ratio=0.3, image_size=16, earlier=second)


def test_a_state_dict_whose_residual_stream_was_cut_is_of_its_record():
    slim, record = prune(lively(new_spec(10, 10, width=16)), target_macs=0.5)
    assert slim.conv1.out_channels < 16
    with pytest.warns(UserWarning, match="assumed"):
        slimmer, again = prune(slim.state_dict(), target_macs=0.25, earlier=record)
    share = cost_of(spec_of(slimmer)).macs / cost_of(record.dense).macs
    assert share == pytest.approx(0.25, abs=0.03)
    assert again.dense == record.dense


@pytest.mark.parametrize("gradual", [False, True])
def test_a_cut_that_removes_nothing_is_refused(gradual):
    config = resolve({"ratio": 0.2, "min_keep": 64, "gradual": gradual})
    with pytest.raises(ValueError, match="nothing is removed"):
        prune_step(network(), config, Task(cost_of(NARROW, 16), 16))


@pytest.mark.parametrize("ratio", [0.0, [0.0, 0.0, 0.0]])
def test_a_cut_of_nothing_may_be_asked_for(ratio):
    slim, _ = prune(network(), ratio=ratio, image_size=16)
    assert spec_of(slim) == NARROW


def test_filters_that_are_zero_already_may_be_cut():
    model = network()
    for parameter in model.layer3[2].parameters():
        nn.init.zeros_(parameter)
    slim, _ = prune(model, ratio=0.5, skip=["layer1", "layer2", "layer3.0", "layer3.1"])
    assert slim.layer3[2].conv1.out_channels == 16


def test_a_module_of_another_library_may_be_in_bf16():
    slim, _ = prune(theirs().bfloat16(), ratio=0.5, image_size=64)
    assert slim.layer1[0].conv1.weight.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_the_copy_is_in_the_mode_of_the_network_and_no_random_number_is_used_up(training):
    model = network().train(training)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    slim, _ = prune(model, ratio=0.3, image_size=16)
    assert slim.training == slim.bn1.training == model.training == training
    assert torch.rand(1) == expected


def test_what_is_no_record_is_refused():
    with pytest.raises(ValueError, match="earlier is a dict"):
        prune(network(), ratio=0.3, image_size=16, earlier={})


def test_a_pruning_that_is_only_set_up_is_not_gone_on_from():
    pending = prune_step(network(), resolve({"gradual": True}), Task(cost_of(NARROW, 16), 16))[1]
    with pytest.raises(ValueError, match="still to be done"):
        prune(network(), ratio=0.3, image_size=16, earlier=pending)


def test_masks_of_the_network_and_of_its_record_hold():
    model = network()
    masking.l1_unstructured(model.layer2[0].conv1, "weight", 0.5)
    state = model.state_dict()
    hidden = model.layer2[0].conv1.weight == 0
    _, record = prune(network(), method="weight", ratio=0.2, image_size=16)
    with pytest.warns(UserWarning, match="assumed"):
        slim, again = prune(state, ratio=0.0, image_size=16, earlier=record)
    assert again.state.masks.keys() == record.state.masks.keys()
    assert not slim.layer2[0].conv1.weight[hidden].any()


def test_a_criterion_that_wants_images_leaves_the_network_alone():
    model = network().train()
    batch = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
    prune(model, image_size=16, batches=lambda: [batch], ratio=[0.5, 0.3, 0.1], criterion="taylor")
    assert model.conv1.weight.grad is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"method": "nope"}, "--method nope is none of l1, soft, weight"),
        ({"methud": "l1"}, "--methud: no such option"),
        ({"method": "soft"}, "while training"),
        ({"method": "weight", "gradual": True}, "while training"),
        ({"ratio": 1.5}, "--ratio 1.5 is not in"),
        ({"ratio": 0.5, "target_macs": 0.5}, "not allowed with"),
        ({"skip": "layer9"}, "layer9"),
        ({"method": "weight", "pattern": "2:4", "allocation": "layer"}, "leave out --criterion"),
        ({"min_keep": 2.5}, "--min-keep 2.5"),
        ({"min_keep": float("nan")}, "--min-keep nan"),
        ({"skip": "../up"}, "no such name"),
        ({"target_latency": 0.5, "batch_size": 0}, "--batch-size 0 is not in"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        prune(network(), image_size=16, **flags)


@pytest.mark.parametrize("size", [0, -1, 32.0, "32"])
def test_an_image_has_a_whole_number_of_pixels(size):
    with pytest.raises(ValueError, match=f"image_size {size!r} is no number of pixels"):
        prune(network(), ratio=0.3, image_size=size)


def test_an_older_config_that_is_refused_now_has_a_name():
    config = PruningConfig("weight", None, pattern="2:4", criterion="magnitude", allocation="layer")
    assert name_of([config]) == "weight-pattern2:4-layer"


def test_a_method_has_a_state_of_its_own():
    """What a training does to it changes no checkpoint that it came from."""
    state = State(masks={"conv1": torch.ones(2, dtype=torch.bool)})
    record = Record([resolve({})], 0.3, {}, 0.2, state)
    method = record.method()
    method.state.masks["conv1"][0] = False
    assert state.masks["conv1"].all()
    assert METHODS["weight"]().state == METHODS["weight"].State()


def theirs(**change):
    """A ResNet-18 of torchvision whose BatchNorms have seen something."""
    model = torchvision.models.resnet18(num_classes=10)
    for name, module in change.items():
        setattr(model, name, module)
    for _ in range(3):
        model(torch.randn(8, 3, 64, 64))
    return model


def test_a_network_of_torchvision_is_cut():
    model = theirs().eval()
    slim, record = prune(model, target_macs=0.5, image_size=64)
    dense = cost_of(record.dense, 64).macs
    assert dense == pytest.approx(148.1e6, rel=0.001)  # 1.814 G for 224 pixels, 0.5 M of it fc
    assert cost_of(spec_of(slim), 64).macs == pytest.approx(dense / 2, rel=0.03)
    assert all(width % 16 == 0 for width in spec_of(slim)["widths"].values())
    untouched, _ = prune(model, ratio=0.0, image_size=64)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(untouched.eval()(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_network_that_weights_do_not_tell_is_refused():
    model = theirs(maxpool=nn.Identity())
    with pytest.raises(ValueError, match=r"read as another network .*stem imagenet"):
        prune(model, image_size=64)


def test_a_state_dict_is_cut_and_what_was_assumed_is_a_warning():
    with pytest.warns(UserWarning, match="assumed: stem imagenet"):
        slim, _ = prune(theirs().state_dict(), ratio=0.5, image_size=64)
    assert slim.layer1[0].conv1.out_channels == 32


def test_pruning_is_light_to_import():
    code = "import pruning, sys; print(*{'torchvision', 'torch._dynamo', 'thop'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, "")


def test_an_image_size_is_not_guessed_for_large_images():
    with pytest.raises(ValueError, match="image_size is needed"):
        prune(theirs(), target_macs=0.5)


def test_masks_of_torch_are_kept():
    model = theirs()
    masking.l1_unstructured(model.layer2[0].conv1, "weight", 0.5)
    slim, _ = prune(model, ratio=0.0, image_size=64)
    assert torch.equal(slim.layer2[0].conv1.weight == 0, model.layer2[0].conv1.weight == 0)


def test_what_gives_no_logits_is_refused():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = theirs()

        def forward(self, x):
            return {"logits": self.net(x)}

    with pytest.raises(ValueError, match="gives a dict, not logits"):
        prune(Wrapped(), image_size=64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_weights_is_kept(dtype):
    slim, _ = prune(build(new_spec(20, 10, width=8)).to(dtype), ratio=0.5, criterion="fpgm")
    assert slim.fc.weight.dtype == dtype


def test_scores_below_zero_compare_across_groups():
    groups = channel_groups(new_spec(20, 10, width=8))
    scores = {g.name: torch.linspace(-2, -1, g.size) * (1 + i) for i, g in enumerate(groups)}
    for own in normalize_scores(scores, "mine").values():
        assert own.mean() == pytest.approx(-1)
