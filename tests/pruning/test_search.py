import pytest

from models import cost_of, new_spec, spec_of
from pruning import METHODS, Task, resolve
from pruning.search import MOST, stage_ratios
from tests.conftest import lively


def cost(ratios):
    return sum(weight * (1 - ratio) for weight, ratio in zip((0.5, 0.3, 0.2), ratios, strict=True))


def test_the_best_ratios_at_the_cost_are_found():
    tried = []

    def accuracy(ratios):
        tried.append(tuple(ratios))
        return -sum((r - w) ** 2 for r, w in zip(ratios, (0.8, 0.5, 0.2), strict=True))

    target = cost((0.8, 0.5, 0.2))
    found = stage_ratios(3, cost, target, accuracy, trials=200)
    assert found == pytest.approx((0.8, 0.5, 0.2), abs=0.1)
    assert len(set(tried[0])) == 1  # equal ratios first
    assert all(cost(ratios) == pytest.approx(target, abs=1e-3) for ratios in tried)
    assert all(0 <= ratio <= MOST for ratios in tried for ratio in ratios)
    assert found == stage_ratios(3, cost, target, accuracy, trials=200)  # drawn from the seed


def test_a_search_prunes_at_the_target_what_the_accuracy_minds_least():
    """With an accuracy that counts the channels of one stage, so that the answer is known."""
    model = lively(new_spec(20, 10))
    dense = cost_of(spec_of(model))

    def accuracy(network):
        return float(spec_of(network)["widths"]["layer3.1.conv1"])

    config = resolve({"target_macs": 0.5, "allocation": "search"})
    pruned = METHODS["l1"](config).prune(model, Task(dense, accuracy=accuracy))
    assert cost_of(spec_of(pruned.network)).macs / dense.macs == pytest.approx(0.5, abs=0.03)
    first, second, third = pruned.ratio
    assert third < 0.1 < min(first, second)
    with pytest.raises(ValueError, match=r"search needs a trained network: see res50prune\.py"):
        METHODS["l1"](config).prune(model, Task(dense))
