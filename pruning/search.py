"""`--allocation search`: one ratio for each stage of the network, found by trying."""

from collections.abc import Callable, Sequence

import numpy as np

TRIALS = 40
MOST = 0.95  # no stage loses more


def stage_ratios(
    stages: int,
    cost_at: Callable[[Sequence[float]], float],
    target: float,
    accuracy_at: Callable[[Sequence[float]], float],
    seed: int = 0,
    trials: int = TRIALS,
) -> tuple[float, ...]:
    """The ratios of the most accurate network that was tried and whose cost is `target`.

    `cost_at(ratios)` falls as the ratios rise. First equal ratios, then random ones, then
    neighbors of the best so far; each proposal is shifted as a whole until it costs the target.
    Raises ValueError for a target that is out of reach.
    """
    if cost_at([MOST] * stages) > target:
        raise ValueError(f"--allocation search leaves at least {1 - MOST:.2f} of each stage")
    random = np.random.default_rng(seed)
    best, highest = np.zeros(stages), -np.inf
    for trial in range(trials):
        proposal = np.zeros(stages)
        if 0 < trial < trials // 2:
            proposal = random.uniform(0, MOST, stages)
        elif trial:
            proposal = best + random.normal(0, 0.1, stages)
        ratios = _shifted(proposal, cost_at, target)
        accuracy = accuracy_at(ratios.tolist())
        if accuracy > highest:
            best, highest = ratios, accuracy
    return tuple(best.tolist())


def _shifted(
    proposal: np.ndarray, cost_at: Callable[[Sequence[float]], float], target: float
) -> np.ndarray:
    low, high = -1.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        ratios = np.clip(proposal + middle, 0, MOST)
        low, high = (middle, high) if cost_at(ratios.tolist()) > target else (low, middle)
    return np.clip(proposal + high, 0, MOST)
