import pytest
import torch
from torch.optim.swa_utils import update_bn

from models import build, channel_groups, new_spec, spec_of
from pruning import prune
from pruning.refit import refit
from pruning.surgery import cut
from tests.conftest import lively


def images(count=4):
    torch.manual_seed(1)
    return [(torch.randn(16, 3, 12, 12), torch.zeros(16, dtype=torch.long)) for _ in range(count)]


@pytest.mark.parametrize("spec", [new_spec(20, 10, width=8), new_spec(26, 10, width=4)])
@pytest.mark.parametrize("scope", ["inner", "residual"])
def test_what_copies_can_replace_is_replaced(spec, scope):
    """Channels that are copies of others can go without a trace, if their readers learn it."""
    model = lively(spec).double()
    groups = [g for g in channel_groups(spec) if g.scope == scope]
    kept = {g.name: torch.arange(g.size // 2) for g in groups}
    with torch.no_grad():
        for group in groups:
            half = group.size // 2
            for layer, channels in (*group.producers, *group.norms):
                for key, tensor in model.get_submodule(layer).state_dict().items():
                    if tensor.dim() and "num" not in key:
                        tensor[list(channels[half : 2 * half])] = tensor[list(channels[:half])]
    slim, x = cut(model, kept), images()[0][0].double()
    wanted = model(x)
    before = (slim.eval()(x) - wanted).abs().max()
    batches = [(x.double(), y) for x, y in images()]
    refit(model, slim, kept, lambda: batches)
    for old, new in zip(model.modules(), slim.modules(), strict=True):
        if isinstance(old, torch.nn.BatchNorm2d):  # here those of the model are right, not data's
            assert not torch.equal(old.running_mean[: len(new.running_mean)], new.running_mean)
    states = cut(model, kept).state_dict()
    slim.load_state_dict({k: v for k, v in states.items() if "running" in k}, strict=False)
    assert (slim.eval()(x) - wanted).abs().max() < 0.1 * before


def test_a_refit_network_is_nearer_to_the_original():
    model = build(new_spec(20, 10))
    update_bn(images(), model)
    model.eval()
    x = images()[0][0]
    errors = []
    for how in ({}, {"refit": True}):
        slim, record = prune(model, 12, lambda: images(), ratio=0.5, **how)
        errors.append((slim.eval()(x) - model(x)).abs().mean().item())
    assert record.steps[0].refit
    assert errors[1] < errors[0]
    assert spec_of(slim)["widths"]["layer1.0.conv1"] == 8


def test_a_repair_needs_images():
    with pytest.raises(ValueError, match="--refit needs training images"):
        prune(build(new_spec(20, 10, width=2)), 12, ratio=0.5, refit=True)


def test_a_repair_stands_inputs_that_are_all_zero():
    model = lively(new_spec(20, 10, width=8))
    group = next(g for g in channel_groups(spec_of(model)) if g.name == "layer1.0.conv1")
    with torch.no_grad():
        model.layer1[0].bn1.weight.zero_()
        model.layer1[0].bn1.bias.fill_(-1)  # behind the ReLU nothing is left
    kept = {group.name: torch.arange(4)}
    slim = cut(model, kept)
    refit(model, slim, kept, images)
    assert all(tensor.isfinite().all() for tensor in slim.state_dict().values())


@pytest.mark.parametrize("flags", [{"refit": True}, {"criterion": "taylor"}])
def test_batches_that_give_nothing_are_refused(flags):
    network = lively(new_spec(20, 10, width=8))
    with pytest.raises(ValueError, match="gives no images"):
        prune(network, ratio=0.3, batches=lambda: [], **flags)


def test_the_network_is_as_it_was_after_a_refit():
    network = lively(new_spec(20, 10, width=8)).train()
    with pytest.raises(ZeroDivisionError):  # in the middle of a pass
        prune(network, ratio=0.3, refit=True, batches=lambda: (1 / 0 for _ in range(1)))
    assert network.training
    prune(network, ratio=0.3, refit=True, batches=images)
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
