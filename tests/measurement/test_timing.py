"""Times that stand beside each other."""

import time

import torch

from measurement.runtimes import REFERENCE
from measurement.timing import BLOCK, WARMUP, Timing, interleaved, relative_latency
from models import new_spec
from tests.conftest import lively


def test_percentiles_are_in_order_and_calls_take_turns():
    order = []

    def sleep(name, seconds):
        order.append(name)
        time.sleep(seconds)

    calls = [lambda: sleep("short", 0.002), lambda: sleep("long", 0.006)]
    short, long = map(Timing.of, interleaved(calls, torch.device("cpu"), seconds=0.1))
    for timing in (short, long):
        assert timing.p10 <= timing.median <= timing.p90
    assert 0.002 <= short.median < long.median
    warm, timed = order[: 2 * WARMUP], order[2 * WARMUP :]
    assert warm == ["short", "long"] * WARMUP
    block = ["short"] * (1 + BLOCK) + ["long"] * (1 + BLOCK)
    assert timed == block * (len(timed) // len(block))
    assert 2 <= len(timed) // len(block) <= 4


def test_what_others_leave_behind_does_not_count():
    """The first call after another function is slow."""
    last = []

    def call(name):
        time.sleep(0.001 if last == [name] else 0.02)
        last[:] = [name]

    calls = [lambda: call("one"), lambda: call("other")]
    for times in interleaved(calls, torch.device("cpu"), seconds=0.1):
        assert Timing.of(times).p90 < 0.015


def test_latency_is_relative_to_the_dense_network():
    dense, slim = lively(new_spec(56, 10, width=16)), lively(new_spec(20, 10, width=4))
    assert relative_latency(dense, (8, 3, 16, 16), REFERENCE, slim) < 0.8
