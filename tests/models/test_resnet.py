import pytest
import torch
import torchvision
from torch import nn

from models import STEMS, build, channel_groups, complete, is_usual, new_spec, spec_of

DEPTHS = (8, 10, 14, 18, 20, 26, 34, 50, 56, 101, 110, 152, 1202)


@pytest.mark.parametrize("depth", DEPTHS)
def test_spec_round_trip(depth):
    spec = new_spec(depth, 100)
    with torch.device("meta"):
        model = build(spec)
    assert spec_of(model) == spec


def test_depth_counts_the_layers():
    for depth in DEPTHS:  # bottleneck, basic and thin
        main_path = [n for n in new_spec(depth, 10)["widths"] if "downsample" not in n]
        assert len(main_path) + 1 == depth  # and the classifier


def test_what_older_versions_left_to_the_depth_is_filled_in():
    spec = new_spec(50, 10)
    old = {key: spec[key] for key in spec if key not in ("blocks", "kind", "stride")}
    assert complete(old) == spec == complete(spec)
    assert is_usual(spec)
    assert not is_usual({**spec, "blocks": [4, 4, 4], "kind": "basic", "depth": 26})


@pytest.mark.parametrize("stem", STEMS)
def test_stems(stem):
    kernel, stride, pool = STEMS[stem]
    model = build(new_spec(18, 7, stem=stem, width=4)).eval()
    sizes = []
    model.layer1.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[-1]))
    model(torch.randn(1, 3, 32, 32))
    assert sizes == [32 // stride // (1 + pool)]
    assert model.conv1.weight.shape[-1] == kernel


def test_the_stride_of_a_bottleneck_may_be_on_its_first_convolution():
    block = build(new_spec(26, 7, width=4, stride="1x1")).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize("depth", [18, 50])
def test_same_names_and_function_as_torchvision(depth):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=7).eval()
    ours = build(new_spec(depth, 7, stem="imagenet"), theirs.state_dict()).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("shortcut", "front"), [("A", 8), ("A-end", 0)])
def test_padding_shortcut_places_the_channels(shortcut, front):
    block = build(new_spec(20, 10, shortcut=shortcut)).layer2[0].eval()
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(1, 16, 8, 8)
    expected = torch.zeros(1, 32, 4, 4)
    expected[:, front : front + 16] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def test_gradient_reaches_the_stem_through_the_shortcuts():
    model = build(new_spec(20, 10))
    for name, parameter in model.named_parameters():
        if ".conv2" in name:
            nn.init.zeros_(parameter)  # only the shortcuts are left
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_impossible_specs_are_refused():
    for arguments in ({"depth": 51}, {"depth": 50, "shortcut": "A"}, {"depth": 50, "arch": "vgg"}):
        with pytest.raises(ValueError, match=r"shortcut|unknown"):
            new_spec(num_classes=10, **arguments)


def test_weights_that_do_not_fit_are_refused():
    state = build(new_spec(20, 10)).state_dict()
    with pytest.raises(ValueError, match=r"fc\.weight"):
        build(new_spec(20, 11), state)
    del state["layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1"):
        build(new_spec(20, 10), state)


@pytest.mark.parametrize(
    ("arch", "depth"), [("resnet", 18), ("resnet", 20), ("resnet", 26), ("resnet_de", 26)]
)
def test_groups_cover_every_channel_once(arch, depth):
    spec = new_spec(depth, 10, arch=arch)
    model = build(spec)
    produced, consumed = {}, {}
    for group in channel_groups(spec):
        written = group.producers + group.passthrough
        for spans, seen in ((written, produced), (group.consumers, consumed)):
            for layer, channels in spans:
                assert len(channels) == group.size
                seen.setdefault(layer, []).extend(channels)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert sorted(produced[name]) == list(range(module.out_channels))
        reads = isinstance(module, (nn.Conv2d, nn.Linear)) and getattr(module, "groups", 1) == 1
        if reads and name != "conv1":
            size = module.weight.shape[1]
            assert sorted(consumed[name]) == list(range(size))


def test_streams():
    streams = {
        (depth, shortcut): [
            (g.name, g.size)
            for g in channel_groups(new_spec(depth, 10, shortcut=shortcut))
            if g.scope == "residual"
        ]
        for depth, shortcut in ((20, "A"), (20, "B"), (50, "B"))
    }
    thin = ["layer1.residual", "layer2.residual", "layer3.residual"]
    # A padding shortcut carries the earlier channels on, so only the new ones are a new group.
    assert streams[20, "A"] == list(zip(thin, (16, 16, 32), strict=True))
    assert streams[20, "B"] == list(zip(thin, (16, 32, 64), strict=True))
    assert streams[50, "B"][:2] == [("stem.residual", 64), ("layer1.residual", 256)]


def test_strided_depthwise_convolutions_train_in_float32_on_a_cpu():
    """Their gradient in bf16 is many times slower there. Without autocast nothing changes."""
    model = build(new_spec(26, 5, arch="resnet_de", width=8))
    types = {}
    for name, module in model.named_modules():
        if name.endswith("conv2_dw"):
            module.register_forward_hook(lambda _, x, y, name=name: types.update({name: y.dtype}))
    for mode in (False, True):
        model.train(mode)
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(2, 3, 32, 32))
        assert types["layer1.0.conv2_dw"] == types["layer2.1.conv2_dw"] == torch.bfloat16
        assert types["layer2.0.conv2_dw"] == (torch.float32 if mode else torch.bfloat16)
    assert model.to(torch.bfloat16)(torch.randn(2, 3, 32, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", [{"stem": "foo"}, {"stride": "2x2"}])
def test_an_unknown_stem_or_stride_is_refused(wrong):
    with pytest.raises(ValueError, match="unknown st"):
        new_spec(50, 10, **wrong)
