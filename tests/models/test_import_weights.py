import pytest
import torch

from models import build, import_weights, new_spec
from tests.conftest import lively


def foreign(state, style):
    """The state dict as other code bases name its entries."""
    renamed = {}
    for key, tensor in state.items():
        if "shortcut" in style:
            key = key.replace("downsample", "shortcut")
        if "linear" in style:
            key = key.replace("fc.", "linear.")
        if "parallel" in style:
            key = f"module.{key}"
        if "old" in style and key.endswith("num_batches_tracked"):
            continue
        renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("style", ["", "shortcut linear", "parallel", "shortcut parallel old"])
@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (18, {}),
        (20, {}),
        (20, {"shortcut": "A-end"}),
        (20, {"shortcut": "B"}),
        (26, {"width": 8}),
        (50, {"stem": "imagenet", "width": 8}),
    ],
)
def test_spec_is_read_off_the_shapes(depth, options, style):
    spec = new_spec(depth, 7, **options)
    model = lively(spec)
    hint = options.get("shortcut") if options.get("shortcut") != "B" else None
    found, state = import_weights({"state_dict": foreign(model.state_dict(), style)}, hint)
    assert found == spec
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(build(found, state).eval()(x), model(x))


def test_half_precision_becomes_single():
    state = {k: v.half() for k, v in lively(new_spec(20, 10)).state_dict().items()}
    _, adopted = import_weights(state)
    assert adopted["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "neither"),
        ({"epoch": 3}, "neither"),
        ({"features.0.weight": torch.zeros(8, 3, 3, 3)}, "missing"),
    ],
)
def test_other_content_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        import_weights(content)


def test_unknown_depth_is_refused():
    state = lively(new_spec(20, 10)).state_dict()
    short = {k: v for k, v in state.items() if not k.startswith("layer3.2")}
    with pytest.raises(ValueError, match="blocks"):
        import_weights(short)
