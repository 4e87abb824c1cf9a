import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from models import channel_groups, cost_of, new_spec, spec_of
from pruning import METHODS, Record, Task, resolve
from pruning.gates import Gates
from pruning.selection import with_fast_widths
from pruning.surgery import cut, cut_tensors, mask_channels
from tests.conftest import lively, step_on_noise

EVERY = 4  # steps between choices, here

SPECS = [
    new_spec(20, 10, width=4),
    new_spec(18, 10, width=4),
    new_spec(26, 10, width=4, arch="resnet_de"),
]


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr("pruning.gates.EVERY", EVERY)


def set_up(model, **flags):
    method = METHODS[flags.get("method", "l1")](resolve({"method": "l1", **flags}))
    method.prune(model, Task(cost_of(spec_of(model))))
    method.on_start(model)
    return method


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SPECS), st.data())
def test_a_network_with_closed_gates_trains_like_the_one_cut_out(spec, data):
    """Logits, BatchNorm's statistics and gradients, in training mode."""
    groups = channel_groups(spec)
    kept = {
        g.name: torch.tensor(sorted(data.draw(st.sets(st.integers(0, g.size - 1), min_size=1))))
        for g in groups
    }
    model = lively(spec)
    slim = cut(model, kept).double().train()
    gated = mask_channels(model, {}).double().train()  # a copy
    Gates(gated, groups).close(kept)
    for module in (*gated.modules(), *slim.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1  # with 1e-5, each magnifies the rounding of a dead channel by 316
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.double), torch.randint(10, (4,))
    logits = [network(x) for network in (gated, slim)]
    torch.testing.assert_close(*logits)
    for out in logits:
        F.cross_entropy(out, y).backward()
    gradients = {name: p.grad for name, p in gated.named_parameters()}
    for name, gradient in cut_tensors(spec, kept, gradients).items():
        torch.testing.assert_close(gradient, slim.get_parameter(name).grad)
    for name, buffer in cut_tensors(spec, kept, dict(gated.named_buffers())).items():
        torch.testing.assert_close(buffer, slim.get_buffer(name))


def test_the_effect_of_a_channel_is_the_slope_of_the_loss():
    model = lively(SPECS[0]).double()
    group = next(g for g in channel_groups(SPECS[0]) if g.name == "layer1.0.conv1")
    x, y = torch.randn(8, 3, 8, 8, dtype=torch.double), torch.randint(10, (8,))
    gates = Gates(model, [group])
    F.cross_entropy(model(x), y).backward()
    effect = gates.effects()["layer1.0.conv1"]
    reader, step = model.layer1[0].conv2, 1e-6
    losses = []
    for sign in (1, -1):  # a gate of 1 + step is a reader whose weights are so much larger
        with torch.no_grad():
            reader.weight[:, 2] *= 1 + sign * step
            losses.append(F.cross_entropy(model(x), y).item())
            reader.weight[:, 2] /= 1 + sign * step
    assert effect[2].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4)


def train(model, method, epochs=10, steps=2 * EVERY):
    """A training on noise, as utils/train.py does it; returns the log and the network."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rows, total = [], epochs * steps
    for step in range(total):
        step_on_noise(model, method, optimizer, step, total)
        if (step + 1) % steps == 0:
            progress = (step + 1) / total
            rows.append(method.on_epoch(model, progress, rows, None))
            if kept := method.to_cut(model, progress):
                model = cut(model, kept)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return rows, model


@pytest.mark.parametrize("name", ["l1", "soft"])
def test_channels_close_on_the_ramp_and_are_cut_at_its_end(name):
    model = lively(SPECS[0])
    method = set_up(model, method=name, ratio=0.5, gradual=name == "l1" or None, ramp=(0.2, 0.6))
    rows, slim = train(model, method)
    ratios = [row.get("pruned_ratio") for row in rows]
    assert ratios[1] == 0 < ratios[2] < ratios[3] < ratios[5] == 0.5
    assert ratios[6:] == [None] * 4  # cut: nothing is left to do
    inner = [g for g in channel_groups(spec_of(slim)) if g.scope == "inner"]
    assert [g.size for g in inner] == [2] * 3 + [4] * 3 + [8] * 3
    assert not method.state.pending
    assert len(method.state.kept["layer1.0.conv1"]) == 2
    grew = sum(row.get("regrown", 0) for row in rows)
    assert grew > 0 if name == "soft" else grew == 0


@pytest.mark.parametrize("allocation", ["global", "cost"])
def test_a_target_is_met_where_the_ramp_ends(allocation):
    model = lively(SPECS[1])
    dense = cost_of(spec_of(model)).macs
    how = {"method": "soft", "allocation": allocation, "scope": "all", "target_macs": 0.4}
    method = set_up(model, **how, ramp=(0.0, 0.5))
    rows, slim = train(model, method, epochs=4, steps=EVERY)
    assert cost_of(spec_of(slim)).macs / dense == pytest.approx(0.4, abs=0.03)
    assert 0 < rows[0]["pruned_ratio"] < rows[1]["pruned_ratio"]


def test_what_l1_closes_on_the_way_to_a_target_stays_closed():
    """Also where whole channels left a little less than the last target, and the next asks less."""
    spec = new_spec(20, 10, width=8)
    torch.manual_seed(0)
    model = lively(spec)
    method = set_up(model, target_macs=0.4, gradual=True, ramp=(0.0, 1.0))
    optimizer, steps = torch.optim.SGD(model.parameters()), 60 * EVERY
    for step in range(0, steps, EVERY):
        for parameter in model.parameters():  # in place of learning
            parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        method.on_step(model, optimizer, step, steps)
    row = method.on_epoch(model, 1.0, [], None)
    assert row["regrown"] == 0 < row["flipped"]
    slim, _ = method.finish(model)
    assert cost_of(spec_of(slim)).macs / cost_of(spec).macs == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("allocation", ["layer", "global", "cost"])
def test_a_ramp_closes_what_a_cut_at_once_removes_while_nothing_is_learned(allocation):
    model = lively(new_spec(20, 10))
    flags = {"criterion": "l2", "allocation": allocation, "ratio": 0.6}
    at_once = METHODS["l1"](resolve(flags))
    at_once.prune(model, Task(cost_of(spec_of(model))))
    method = set_up(model, **flags, gradual=True)
    optimizer, steps = torch.optim.SGD(model.parameters()), 20 * EVERY
    for step in range(0, steps // 2, EVERY):
        method.on_step(model, optimizer, step, steps)
    method.on_epoch(model, 0.5, [], None)
    inner = at_once.state.kept.keys()
    assert {name: method.state.kept[name] for name in inner} == at_once.state.kept


def test_a_ramp_rounds_widths_for_a_latency_target_as_the_cut_would():
    model = lively(new_spec(20, 10, width=8))  # a quarter of its narrowest groups: 2
    dense = cost_of(spec_of(model)).macs
    task = Task(cost_of(spec_of(model)), latency=lambda m: cost_of(spec_of(m)).macs / dense)
    config = resolve({"method": "soft", "target_latency": 0.5, "ramp": (0, 0.5)})
    method = METHODS["soft"](with_fast_widths(config, spec_of(model)))
    method.prune(model, task)
    method.on_start(model)
    method.on_epoch(model, 0.5, [], None)
    assert all(len(index) % 2 == 0 for index in method.state.kept.values())
    slim, _ = method.finish(model)
    assert cost_of(spec_of(slim)).macs / dense == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("flag", [{"criterion": "taylor"}, {"allocation": "sensitivity"}])
def test_what_needs_images_is_refused_for_a_ramp(flag):
    with pytest.raises(ValueError, match="not for --gradual"):
        resolve({"gradual": True, **flag})


def test_a_ramp_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValueError, match=r"--ramp 0\.5 0\.2"):
        resolve({"method": "soft", "ramp": (0.5, 0.2)})
    with pytest.raises(ValueError, match="--ramp means nothing"):
        resolve({"method": "l1", "ramp": (0.1, 0.2)})


def test_the_state_of_an_earlier_version_loads():
    old = {"kept": {"layer1.0.conv1": [0]}, "masks": {}, "pending": True, "image_size": 32}
    old |= {"final_ratio": [0.5], "multiple": 1, "dense_cost": [9, 9], "effects": {}}
    record = {"steps": [resolve({}).as_dict()], "ratio": 0.5, "dense": {}, "share_cut": 0.2}
    state = Record.from_dict({**record, **old, "method": "l1"}).state
    assert state.kept == old["kept"]
    assert state.counts == {}
