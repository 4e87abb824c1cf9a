import random
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from models import build, import_weights, new_spec
from models.resnet import STEMS
from tests.conftest import lively

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BLOCK = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "conv3": "6", "bn3": "7"}
LETTERS = {f"{kind}{i}": f"{kind}_{'abc'[i - 1]}" for kind in ("conv", "bn") for i in (1, 2, 3)}


def torchvision(layer):
    return layer


def kuangliu(layer):
    return layer.replace("downsample", "shortcut").replace("fc", "linear")


def weiaicunzai(layer):
    if layer in ("conv1", "bn1"):
        return f"conv1.{int(layer == 'bn1')}"
    if layer == "fc":
        return layer
    stage, index, *rest = layer.split(".")
    inside = f"shortcut.{rest[1]}" if len(rest) > 1 else f"residual_function.{BLOCK[rest[0]]}"
    return f"conv{int(stage[-1]) + 1}_x.{index}.{inside}"


def resnext(layer):
    if "." not in layer:
        return {"conv1": "conv_1_3x3", "bn1": "bn_1", "fc": "classifier"}[layer]
    stage, index, *rest = layer.split(".")
    return ".".join([f"stage_{stage[-1]}", index, LETTERS.get(rest[0], rest[0]), *rest[1:]])


def lists(layer):
    """Stages in a list, the classifier in a Sequential."""
    stage, _, rest = layer.partition(".")
    return f"layers.{int(stage[-1]) - 1}.{rest}" if rest else layer.replace("fc", "head.fc.1")


def flat(layer):
    """All blocks of depth 20 in one list."""
    if "." not in layer:
        return f"features.{layer}" if layer != "fc" else "features.head"
    stage, index, *rest = layer.split(".")
    return ".".join(["features.blocks", str(3 * int(stage[-1]) - 3 + int(index)), *rest])


SCHEMES = (torchvision, kuangliu, weiaicunzai, resnext, lists)
NETWORKS = [
    *[(depth, {}) for depth in (8, 10, 14, 18, 20)],
    (20, {"shortcut": "A-end"}),
    (20, {"shortcut": "B"}),
    *[(26, {"width": 8}), (26, {"width": 8, "stride": "1x1"})],
    (50, {"stem": "imagenet", "width": 8}),
]


def renamed(state, scheme):
    named = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        named[f"{scheme(layer)}.{kind}"] = tensor
    return named


def logits(model):
    with torch.no_grad():
        return model.eval()(X)


def read(content, **told):
    found = import_weights(content, **told)
    return build(found.spec, found.state_dict), found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("depth", "options"), NETWORKS)
def test_structure_tells_what_a_layer_is(depth, options, scheme):
    spec = new_spec(depth, 7, **options)
    model = lively(spec)
    hints = {k: v for k, v in options.items() if k in ("shortcut", "stride")}
    ours, found = read(renamed(model.state_dict(), scheme), **hints)
    assert found.spec == spec
    torch.testing.assert_close(logits(ours), logits(model))


def test_blocks_in_one_list():
    model = lively(new_spec(20, 7))
    ours, found = read(renamed(model.state_dict(), flat))
    assert found.spec == new_spec(20, 7)
    torch.testing.assert_close(logits(ours), logits(model))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), scheme=st.sampled_from(SCHEMES), wide=st.booleans())
def test_the_order_in_the_file_does_not_matter(seed, scheme, wide):
    model = lively(new_spec(26, 7, width=4) if wide else new_spec(20, 7, shortcut="B", width=4))
    entries = [*renamed(model.state_dict(), scheme).items()]
    random.Random(seed).shuffle(entries)
    ours, _ = read(dict(entries))
    torch.testing.assert_close(logits(ours), logits(model))


@pytest.mark.parametrize("blocks", [[4, 4, 4], [2, 3, 1], [1, 2, 1, 2]])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_any_number_of_blocks(blocks, kind):
    """Of any width, and with a projection in the first block, too."""
    convs = 2 if kind == "basic" else 3
    spec = {**new_spec(26, 7, width=4), "blocks": blocks, "kind": kind, "widths": {"conv1": 6}}
    spec |= {"depth": 2 + convs * sum(blocks), "width": 6}
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            for conv in range(1, convs + 1):
                spec["widths"][f"layer{stage}.{index}.conv{conv}"] = 5 * stage + (conv == convs)
        spec["widths"][f"layer{stage}.0.downsample.0"] = 5 * stage + 1
    model = lively(spec)
    ours, found = read(model.state_dict())
    assert found.spec == spec
    torch.testing.assert_close(logits(ours), logits(model))


def worded(layer):
    """Blocks that have words for names, in their order."""
    stage, _, rest = layer.partition(".")
    index, _, rest = rest.partition(".")
    return f"{stage}.{('one', 'two', 'three')[int(index)]}.{rest}" if rest else layer


def pairs(layer):
    """The shortcut's layers beside the others, in the block."""
    layer = layer.replace("downsample.0", "downsample_conv").replace(
        "downsample.1", "downsample_norm"
    )
    return layer.replace("bn", "norm") if layer.count(".") > 1 else layer


def body(layer):
    """All layers of a block in one module, the shortcut's counted on."""
    head, _, rest = layer.rpartition(".")
    head, rest = (
        (head.rpartition(".")[0], f"downsample.{rest}") if "downsample" in head else (head, rest)
    )
    rest = {"downsample.0": "conv4", "downsample.1": "bn4"}.get(rest, rest)
    return f"{head}.body.{rest}" if head else rest


@pytest.mark.parametrize("scheme", [worded, pairs, body])
@pytest.mark.parametrize("depth", [8, 10, 20, 26])
def test_layers_are_paired_as_they_stand_in_the_file(scheme, depth):
    model = lively(new_spec(depth, 7, width=4, shortcut="B"))
    ours, _ = read(renamed(model.state_dict(), scheme))
    torch.testing.assert_close(logits(ours), logits(model))


def test_a_block_may_have_three_channels():
    spec = new_spec(20, 7)
    spec["widths"]["layer1.0.conv1"] = spec["widths"]["layer2.1.conv1"] = 3
    found = import_weights(lively(spec).state_dict())
    assert found.spec == spec


def test_a_projection_in_the_middle_of_a_stage_is_refused():
    spec = new_spec(20, 7, shortcut="B")
    spec["widths"]["layer2.1.downsample.0"] = 32
    for scheme in (torchvision, flat):
        with pytest.raises(ValueError, match="has a projection, but is not the first block"):
            import_weights(renamed(lively(spec).state_dict(), scheme))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.module.", "module.student.", "net.model."]
)
def test_a_prefix_that_all_share_is_taken_off(prefix):
    model = lively(new_spec(20, 7))
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    state["n_averaged"] = torch.tensor(3)
    ours, found = read(state)
    torch.testing.assert_close(logits(ours), logits(model))
    assert "left out: n_averaged" in found.notes


@pytest.mark.parametrize("key", ["model_state_dict", "weights", "params", "state.net"])
def test_weights_lie_under_any_key(key):
    model = lively(new_spec(20, 7))
    content = OrderedDict(model.state_dict())
    for name in reversed(key.split(".")):
        content = {name: content, "epoch": 3}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    content["optimizer"] = optimizer.state_dict()
    found = import_weights(content)
    assert len(found.notes) == 1  # what is assumed
    assert found.spec == new_spec(20, 7)


def test_of_several_networks_one_is_chosen_and_named():
    raw, average = lively(new_spec(20, 7)), lively(new_spec(20, 7), seed=1)
    content = {"state_dict": raw.state_dict(), "ema": {"module": average.state_dict()}}
    ours, found = read(content)
    torch.testing.assert_close(logits(ours), logits(raw))
    assert found.notes[0] == "weights under state_dict, ema.module; read: state_dict (--key)"
    ours, found = read(content, key="ema.module")
    torch.testing.assert_close(logits(ours), logits(average))
    with pytest.raises(ValueError, match="--key best: the weights are under state_dict, ema"):
        read(content, key="best")


def test_what_tools_leave_behind_is_left_out():
    model = lively(new_spec(20, 7))
    state = model.state_dict()
    state |= {f"layer1.{i}.conv1.total_ops": torch.zeros(1) for i in range(3)}
    state |= {"total_params": torch.zeros(1), "version": "1.0"}
    ours, found = read(state)
    torch.testing.assert_close(logits(ours), logits(model))
    first = "left out: layer1.0.conv1.total_ops, layer1.1.conv1.total_ops, layer1.2.conv1.total_ops"
    assert found.notes[0] == f"{first} and 2 more"


def test_equivalent_forms_become_ours():
    """Convolutions with a bias, a classifier without, another eps, BatchNorm without scale."""
    model = lively(new_spec(26, 7, width=4, stem="7x7s2"))
    for module in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        module.bias = nn.Parameter(torch.randn(module.out_channels))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eps = 1e-2
    norms[2].weight = norms[2].bias = None
    model.fc = nn.Linear(model.fc.in_features, 7, bias=False)
    ours, found = read(model.state_dict(), eps=1e-2, stem="7x7s2")
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-4, atol=1e-4)
    assert found.notes == ["2 + 2 + 2 + 2 bottleneck blocks; assumed: stride on 3x3 (--stride)"]


def test_masks_of_torch_become_ours():
    model = lively(new_spec(20, 7))
    for name in ("layer1.0.conv1", "fc"):
        prune.l1_unstructured(model.get_submodule(name), "weight", 0.5)
    ours, found = read({f"module.{k}": v for k, v in model.state_dict().items()})
    torch.testing.assert_close(logits(ours), logits(model))
    assert found.masks.keys() == {"layer1.0.conv1", "fc"}
    assert torch.equal(found.masks["fc"], ours.fc.weight != 0)


def test_what_is_assumed_is_said():
    _, found = read(lively(new_spec(20, 7)).state_dict())
    told = ("stem cifar (--stem)", "shortcut A (--shortcut)", "eps 1e-05 (--bn-eps)")
    assert found.notes == [f"3 + 3 + 3 basic blocks; assumed: {', '.join(told)}"]
    for stem in (name for name, one in STEMS.items() if one.kernel == 7):
        state = lively(new_spec(18, 7, stem=stem, width=4)).state_dict()
        assert read(state, stem=stem)[1].spec["stem"] == stem


def test_half_precision_becomes_single():
    state = {k: v.half() for k, v in lively(new_spec(20, 10)).state_dict().items()}
    assert import_weights(state).state_dict["conv1.weight"].dtype == torch.float32


def grouped(state):
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][:, :4]


def added(name, *shape):
    return lambda state: state.update({name: torch.ones(shape)})


def without(prefix):
    return lambda state: [state.pop(name) for name in [*state] if name.startswith(prefix)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (grouped, "layer1.0.conv2 is a grouped convolution"),
        (added("layer1.0.bn3.weight", 16), "not a ResNet with BatchNorm: layer1.0.bn3"),
        (added("layer1.0.alpha1", 1), "no parameter like layer1.0.alpha1"),
        (added("mean", 3), "no parameter like mean"),
        (added("conv1.weight", 0, 3, 3, 3), "conv1.weight is no plain tensor"),
        (lambda state: state.update({"bn1.running_var": -torch.ones(16)}), "has negative values"),
        (lambda state: state.update({"fc.weight": state["fc.weight"].to_sparse()}), "no plain"),
        (added("layer1.0.conv1.alpha", 1), "no parameter like layer1.0.conv1.alpha"),
        (added("aux.weight", 7, 64), "1 convolutions of RGB images, 2 linear layers"),
        (added("conv0.weight", 3, 3, 1, 1), "2 convolutions of RGB images"),
        (added("layer3.0.conv1.weight", 64, 30, 3, 3), "do not fit"),
        (without("bn1"), "one BatchNorm outside of the blocks is wanted"),
        (without("layer1.1.bn"), "layer1.1 has 2 convolutions and 0 BatchNorms"),
        (without("layer"), "no blocks can be told apart"),
    ],
)
def test_what_is_something_else_is_refused_in_one_short_line(damage, message):
    state = dict(lively(new_spec(20, 7)).state_dict())
    damage(state)
    with pytest.raises(ValueError, match=message) as error:
        import_weights(state)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_a_dict_within_itself_comes_to_an_end():
    content = {3: torch.ones(1), ("a", 1): {}}
    content["again"] = content
    content["net"] = {**lively(new_spec(8, 7)).state_dict(), 5: torch.ones(1)}
    assert import_weights(content, key="net").spec == new_spec(8, 7)


def test_a_single_norm_of_another_name_is_the_shortcut_s():
    def beside(layer):
        layer = layer.replace("downsample.0", "sc").replace("downsample.1", "bnsc")
        return layer

    model = lively(new_spec(20, 7, width=4, shortcut="B"))
    entries = [*renamed(model.state_dict(), beside).items()]
    random.Random(0).shuffle(entries)
    ours, _ = read(dict(entries))
    torch.testing.assert_close(logits(ours), logits(model))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"a": {"weight": torch.zeros(3)}}])
def test_other_content_is_refused(content):
    with pytest.raises(ValueError, match="neither"):
        import_weights(content)


@pytest.mark.parametrize(
    ("options", "told", "message"),
    [
        ({}, {"shortcut": "B"}, "the shortcuts of the network have no parameters"),
        ({"shortcut": "B"}, {"shortcut": "A"}, "the shortcuts of the network have projections"),
        ({}, {"stem": "imagenet"}, "the first convolution has 3x3 pixels"),
    ],
)
def test_what_contradicts_the_shapes_is_refused(options, told, message):
    with pytest.raises(ValueError, match=message):
        import_weights(lively(new_spec(20, 7, **options)).state_dict(), **told)
