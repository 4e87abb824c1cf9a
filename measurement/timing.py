"""Time of inference."""

import copy
import time
from math import comb
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType

from utils.device import Machine

from .engines import eager
from .runtimes import Call

WARMUP, LAYERWISE, PROFILED = 3, 7, 3  # calls
BLOCK = 4  # calls of a block that count
LEAST, MOST = 3, 50  # blocks
NARROW, PATIENCE = 1.03, 20  # ratio of the ends of an interval; seconds until it must do


class Quantiles(NamedTuple):
    """Median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Quantiles":
        """Of any numbers."""
        return cls(*np.quantile(values, (0.5, 0.1, 0.9)).tolist())


class Interval(NamedTuple):
    """A median, and the ends of its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Interval":
        """From order statistics, whatever the distribution; of eight values or fewer their range.

        Conover 1999, Practical Nonparametric Statistics, section 3.2. (Of five or fewer the range
        holds the median less often.)
        """
        count, ordered = len(values), np.sort(values)
        below = np.cumsum([comb(count, k) / 2**count for k in range(count)])  # P(<= k lie below it)
        rank = max(0, int((below <= 0.025).sum()) - 1)
        ends = ordered[[rank, count - 1 - rank]].tolist()
        return cls(np.median(values).item(), *ends)


class Times(NamedTuple):
    """Seconds (blocks, calls) of the first function, and of another one right after it."""

    first: np.ndarray
    own: np.ndarray

    def speedups(self) -> np.ndarray:
        """Over the first function (blocks,): ratios of what was timed one right after the other."""
        return np.median(self.first, 1) / np.median(self.own, 1)


def interleaved(calls: list[Call], device: torch.device, seconds: float = 1.0) -> list[Times]:
    """Times of several functions that take turns.

    In blocks, and the first function again before each of the others, so that a drifting machine
    slows both alike: A A A A A, B B B B B, A A A A A, C C C C C, ... The first call of a block
    finds what others left in the caches, and does not count. Each function is called for about
    `seconds` in total (the first one for each other) after a warm-up, in LEAST to MOST blocks.
    """

    def once(call: Call) -> float:
        start = time.perf_counter()
        call()
        return _clock(device) - start

    def block(call: Call) -> list[float]:
        return [once(call) for _ in range(1 + BLOCK)][1:]

    for _ in range(WARMUP):
        slowest = max(once(call) for call in calls)
    first, *others = calls
    blocks = min(MOST, max(LEAST, int(seconds / slowest / BLOCK)))
    rounds = [[(block(first), block(call)) for call in others or [first]] for _ in range(blocks)]
    times = [Times(*pair) for pair in np.array(rounds).transpose(1, 2, 0, 3)]
    return [Times(times[0].first, times[0].first), *times[: len(others)]]


def _clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def relative_latency(
    dense: nn.Module, shape: tuple[int, ...], machine: Machine, network: nn.Module
) -> float:
    """Time of one batch in `network`, as a fraction of that in `dense`.

    The median of ratios of neighboring blocks: a machine that drifts slows both. Timed until its
    95 % interval is narrow, for about PATIENCE seconds at most.
    """
    x, speedups, start = torch.randn(shape), np.empty(0), time.monotonic()
    calls = [eager(model, machine)(x) for model in (dense, network)]
    while True:
        _, times = interleaved(calls, machine.device, seconds=1)
        speedups = np.append(speedups, times.speedups())
        found = Interval.of(speedups)
        narrow = len(speedups) > 5 and found.high < NARROW * found.low
        if narrow or time.monotonic() - start > PATIENCE:
            return 1 / found.median


def layer_times(network: nn.Module, x: Tensor, machine: Machine) -> dict[str, float]:
    """Median seconds that each layer takes on the batch `x`, one by one in PyTorch."""
    network = copy.deepcopy(network)
    moments: dict[str, list[float]] = {}  # of each layer, starts and ends in turn
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            ts = moments[name] = []
            layer.register_forward_pre_hook(lambda *_, ts=ts: ts.append(_clock(machine.device)))
            layer.register_forward_hook(lambda *_, ts=ts: ts.append(_clock(machine.device)))
    call = eager(network, machine)(x)  # copies the hooks too
    for _ in range(WARMUP + LAYERWISE):
        call()
    return {name: np.median(np.diff(ts)[2 * WARMUP :: 2]).item() for name, ts in moments.items()}


def profile(call: Call, device: torch.device) -> dict[str, Any]:
    """What torch.profiler sees in one call: `cpu_ms` of operators, `cuda_ms` of kernels.

    `operators` are the most expensive ones: name and times. `cuda_ms` is None on the CPU.
    """
    cuda = device.type == "cuda"
    call()
    with torch.profiler.profile() as profiler:
        for _ in range(PROFILED):
            call()
    # Kernels have events of their own beside those of the operators that launched them.
    kernels, operators = [], []
    for event in profiler.key_averages():
        cpu_ms, cuda_ms = (
            microseconds / 1e3 / PROFILED
            for microseconds in (event.self_cpu_time_total, event.self_device_time_total)
        )
        if event.device_type != DeviceType.CPU:
            kernels.append(cuda_ms)
        elif "Synchronize" not in event.key:
            row = {"name": event.key, "cpu_ms": cpu_ms, "cuda_ms": cuda_ms if cuda else None}
            operators.append(row)
    operators.sort(key=lambda operator: operator["cuda_ms" if cuda else "cpu_ms"], reverse=True)
    cpu_ms = sum(operator["cpu_ms"] for operator in operators)
    cuda_ms = sum(kernels) if cuda else None
    return {"cpu_ms": cpu_ms, "cuda_ms": cuda_ms, "operators": operators[:5]}
