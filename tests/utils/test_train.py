import itertools
import math
from dataclasses import replace

import pytest
import torch

from models import build, new_spec
from pruning import Method, PruningConfig
from pruning.surgery import cut
from utils import data as D
from utils.checkpoint import CheckpointError
from utils.config import LR_SCHEDULES, Recipe
from utils.device import Machine
from utils.run import Run
from utils.train import Diverged, evaluate, fit, recalibrate

CPU = Machine(torch.device("cpu"), torch.float32)
RECIPE = Recipe(epochs=2, batch_size=32)


@pytest.fixture(scope="module")
def data():
    full = D.synthetic(16)
    return full._replace(
        train=D.Split(*(part[:128] for part in full.train)),
        test=D.Split(*(part[:100] for part in full.test)),
    )


def network(seed=0):
    torch.manual_seed(seed)
    return build(new_spec(20, 20, width=4))


def train(folder, data, recipe=RECIPE, model=None, machine=CPU, method=None):
    model = model or network()
    with Run(folder, {"epochs": recipe.epochs}, machine) as run:
        trained = fit(model, data, recipe, run, method)
    return model.state_dict(), trained.rows


class Watch(Method):
    """A method that only watches the steps."""

    def __init__(self, seen):
        super().__init__(PruningConfig())
        self.seen = seen

    def on_step(self, model, optimizer, step, steps):
        self.seen(optimizer, step, steps)

    def on_epoch(self, model, progress, rows, measure):
        return {"progress": progress}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_deterministic_for_a_seed(tmp_path, data, dtype):
    machine = Machine(torch.device("cpu"), dtype)
    first, _ = train(tmp_path / "a", data, machine=machine)
    second, _ = train(tmp_path / "b", data, machine=machine)
    other, _ = train(tmp_path / "c", data, replace(RECIPE, seed=1), machine=machine)
    assert equal(first, second)
    assert not equal(first, other)


def test_looking_at_the_test_images_less_often_changes_no_weight(tmp_path, data):
    recipe = replace(RECIPE, epochs=5)
    often, rows = train(tmp_path / "often", data, recipe)
    seldom, fewer = train(tmp_path / "seldom", data, replace(recipe, eval_every=3))
    assert equal(often, seldom)
    assert [row["epoch"] for row in fewer if "top1" in row] == [3, 5]  # the last one always
    assert fewer[-1]["top1"] == rows[-1]["top1"]


def test_resumed_training_has_the_same_bits(tmp_path, data):
    recipe = replace(RECIPE, epochs=4)
    whole, rows = train(tmp_path / "whole", data, recipe)

    class Killed(Exception):
        pass

    steps = itertools.count()

    def kill(*_):
        if next(steps) == 9:  # in the middle of the third epoch
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "cut", data, recipe, method=Watch(kill))
    resumed, again = train(tmp_path / "cut", data, recipe, model=network(99))
    assert equal(whole, resumed)
    for a, b in zip(rows, again, strict=True):
        assert {k: a[k] for k in ("loss", "top1", "lr", "train_loss")} == {
            k: b[k] for k in ("loss", "top1", "lr", "train_loss")
        }


def test_a_line_that_the_log_lacks_is_written_again(tmp_path, data):
    """As after a kill between the last state and the log."""
    train(tmp_path, data)
    log = tmp_path / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole.splitlines(keepends=True)[0])
    train(tmp_path, data)
    assert log.read_text() == whole


def test_other_images_do_not_join_a_training(tmp_path, data):
    def stop(optimizer, step, total):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, data, method=Watch(stop))
    fewer = data._replace(test=data.test.draw(50, 0))
    with pytest.raises(ValueError, match="the images are not those"):
        train(tmp_path, fewer)
    _, rows = train(tmp_path, data)
    assert len(rows) == RECIPE.epochs


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("optimizer"),
        lambda state: state.update(schedule=3),
        lambda state: state["model"].pop("bn1.bias"),
        lambda state: state["model"]["bn1.bias"].fill_(math.nan),
        lambda state: state["optimizer"]["state"][0].update(momentum_buffer=1.0),
    ],
)
def test_a_damaged_state_is_named(tmp_path, data, change):
    def stop(optimizer, step, total):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, data, method=Watch(stop))
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "resume.pt")
    with pytest.raises(CheckpointError, match=r"resume\.pt: damaged \(.*\); --force starts over"):
        train(tmp_path, data)


def test_one_image_is_too_few_for_batchnorm(tmp_path, data):
    with pytest.raises(ValueError, match="a batch of 1 for 1 processes is too small"):
        train(tmp_path, data._replace(train=data.train.draw(1, 0)))


def test_a_batch_larger_than_the_data_shrinks(tmp_path, data):
    _, rows = train(tmp_path, data, replace(RECIPE, batch_size=1000, epochs=1))
    assert math.isfinite(rows[0]["train_loss"])


def test_divergence_stops_and_keeps_the_last_good_state(tmp_path, data):
    def explode(optimizer, step, total):
        assert total == 8
        if step == 5:  # in the second epoch
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].fill_(math.nan)

    with pytest.raises(Diverged, match="epoch 2"):
        train(tmp_path, data, method=Watch(explode))
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert len(state["rows"]) == 1
    assert all(v.isfinite().all() for v in state["model"].values())


def test_evaluate_is_exact_and_leaves_the_network_alone(data):
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    top1, loss = evaluate(model, data, CPU)
    assert model.training
    assert equal(before, model.state_dict())
    with torch.no_grad():
        logits = model.eval()(D.normalize(data.test.images, data.mean, data.std))
    assert top1 == 100 * (logits.argmax(1) == data.test.labels).double().mean().item()
    expected = torch.nn.functional.cross_entropy(logits, data.test.labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_method_sees_every_step_and_epoch(tmp_path, data):
    steps = []
    watch = Watch(lambda optimizer, step, total: steps.append((step, total)))
    _, rows = train(tmp_path, data, method=watch)
    assert steps == [(step, 8) for step in range(8)]
    assert [row["progress"] for row in rows] == [0.5, 1]


class Careless(Method):
    """A method that hands over less than what was trained."""

    def finish(self, model):
        return cut(model, {"layer1.0.conv1": torch.tensor([0, 1, 2])}), self.state


def test_what_is_handed_over_must_compute_what_was_trained(tmp_path, data):
    with pytest.raises(RuntimeError, match="computes something else"):
        train(tmp_path, data, method=Careless())


def test_schedules_by_hand():
    at = {name: [round(f(t), 4) for t in (0, 0.15, 0.3, 0.65)] for name, f in LR_SCHEDULES.items()}
    assert at["onecycle"] == [0.04, 0.52, 1.0, 0.5]
    assert at["cosine"][0] == 1.0
    assert LR_SCHEDULES["cosine"](0.5) == pytest.approx(0.5)
    assert at["multistep"] == [1.0, 1.0, 1.0, 0.1]
    assert LR_SCHEDULES["multistep"](0.75) == 0.01
    assert at["constant"] == [1.0] * 4


def test_a_teacher_joins_the_loss_by_hand(tmp_path, data):
    """One step: its loss is that of Hinton et al., weighted."""
    ours, theirs = network(0), network(1).eval()
    recipe = replace(RECIPE, epochs=1, batch_size=128, augment="none", label_smoothing=0.0)
    x = D.normalize(data.train.images, data.mean, data.std)
    logits, wanted = ours.train()(x), theirs(x)
    t, w = recipe.temperature, recipe.teacher_weight
    soft = torch.nn.functional.softmax(wanted / t, 1)
    kl = (soft * (soft.log() - torch.nn.functional.log_softmax(logits / t, 1))).sum(1).mean()
    plain = torch.nn.functional.cross_entropy(logits, data.train.labels)
    expected = (1 - w) * plain + w * t * t * kl
    with Run(tmp_path, {}, CPU) as run:
        trained = fit(network(0), data, recipe, run, teacher=theirs)
    assert trained.rows[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_recalibrated_statistics_are_those_of_training_images(data):
    model = network().eval()
    recalibrate(model, data, CPU, replace(RECIPE, augment="none"))
    with torch.no_grad():
        out = model.conv1(D.normalize(data.train.images, data.mean, data.std))
    assert torch.allclose(model.bn1.running_mean, out.mean((0, 2, 3)), atol=1e-5)
