"""Time of inference."""

import copy
import time
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
LEAST, MOST = 2, 50  # blocks


class Timing(NamedTuple):
    """Seconds per call: median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, calls: np.ndarray) -> "Timing":
        """Of the seconds of all calls of a function."""
        return cls(*np.quantile(calls, (0.5, 0.1, 0.9)).tolist())


def interleaved(calls: list[Call], device: torch.device, seconds: float = 1.0) -> np.ndarray:
    """Seconds of each call (functions, calls) of several functions that take turns.

    In blocks, so that a drifting machine hits all of them: A A A A A, B B B B B, ..., A A A A A,
    ... The first call of a block finds what others left in the caches, and does not count. Each
    function is called for about `seconds` in total after a warm-up, in LEAST to MOST blocks.
    """

    def once(call: Call) -> float:
        start = time.perf_counter()
        call()
        return _clock(device) - start

    for _ in range(WARMUP):
        slowest = max(once(call) for call in calls)
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(min(MOST, max(LEAST, int(seconds / slowest / BLOCK)))):
        for call, times in zip(calls, samples, strict=True):
            times += [once(call) for _ in range(1 + BLOCK)][1:]
    return np.array(samples)


def _clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def relative_latency(
    dense: nn.Module, shape: tuple[int, ...], machine: Machine, network: nn.Module
) -> float:
    """Time of one batch in `network`, as a fraction of that in `dense`.

    The median of ratios of calls in neighboring blocks: a machine that drifts slows both.
    """
    x = torch.randn(shape)
    calls = [eager(model, machine)(x) for model in (dense, network)]
    before, after = interleaved(calls, machine.device, seconds=4)
    return float(np.median(after / before))


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
