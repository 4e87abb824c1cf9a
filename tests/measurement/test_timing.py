"""Times that stand beside each other."""

import itertools
import time
from functools import partial

import numpy as np
import pytest
import torch

from measurement.runtimes import REFERENCE
from measurement.timing import BLOCK, WARMUP, Interval, Quantiles, interleaved, relative_latency
from models import new_spec
from tests.conftest import lively


def test_calls_take_turns_and_the_first_stands_beside_each_other():
    order = []

    def sleep(name, seconds):
        order.append(name)
        time.sleep(seconds)

    calls = [partial(sleep, "a", 0.01), partial(sleep, "b", 0.03), partial(sleep, "c", 0.02)]
    timed = interleaved(calls, torch.device("cpu"), seconds=0.4)
    for times in timed:
        found = Quantiles.of(times.own)
        assert found.p10 <= found.median <= found.p90
        assert times.own.shape == times.first.shape == (len(times.own), BLOCK)
    a, b, c = (np.median(times.own) for times in timed)
    assert 0.01 <= a < c < b
    assert (timed[0].speedups() == 1).all()
    assert np.median(timed[1].speedups()) == pytest.approx(1 / 3, rel=0.4)
    warm, later = order[: 3 * WARMUP], order[3 * WARMUP :]
    assert warm == ["a", "b", "c"] * WARMUP
    turns = [name for name in "abac" for _ in range(1 + BLOCK)]
    assert later == turns * (len(later) // len(turns))
    assert 3 <= len(later) // len(turns) <= 4  # 0.4 s / 4 / 0.03 s


@pytest.mark.parametrize("size", [6, 8, 11, 16, 21, 26, 50])
def test_the_interval_of_a_median_holds_it_95_times_in_100(size):
    draws = np.random.default_rng(0).lognormal(size=(4000, size))
    held = [interval.low <= 1 <= interval.high for interval in map(Interval.of, draws)]
    assert 0.945 < np.mean(held) < 0.995
    assert Interval.of(np.array([3.0, 1.0, 2.0])) == (2, 1, 3)


def test_one_alone():
    (times,) = interleaved([partial(time.sleep, 0.001)], torch.device("cpu"), seconds=0.01)
    assert np.median(times.own) >= 0.001


def test_what_others_leave_behind_does_not_count():
    """The first call after another function is slow."""
    last = []

    def call(name):
        time.sleep(0.001 if last == [name] else 0.02)
        last[:] = [name]

    for times in interleaved(
        [partial(call, "one"), partial(call, "other")], torch.device("cpu"), seconds=0.1
    ):
        assert Quantiles.of(times.own).p90 < 0.015


def test_a_machine_that_drifts_gives_sound_speedups():
    """Four times as slow for two blocks of calls out of four; all networks are equally fast."""
    count = itertools.count(-3 * WARMUP)

    def call():
        time.sleep(0.02 if next(count) // (1 + BLOCK) % 4 >= 2 else 0.005)

    _, b, c = interleaved([call] * 3, torch.device("cpu"), seconds=0.1)
    for times in (b, c):
        assert np.median(times.speedups()) == pytest.approx(1, rel=0.3)
    assert np.median(c.own) > 2 * np.median(b.own)  # each by itself says something else


def test_latency_is_relative_to_the_dense_network(monkeypatch):
    monkeypatch.setattr("measurement.timing.PATIENCE", 1)
    dense, slim = lively(new_spec(56, 10, width=16)), lively(new_spec(20, 10, width=4))
    assert relative_latency(dense, (8, 3, 16, 16), REFERENCE, slim) < 0.8
