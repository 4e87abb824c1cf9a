import pytest

from pruning.search import MOST, stage_ratios


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
