"""Time of inference."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from models import Group
from utils.device import Machine

from .engines import eager

WARMUP, LEAST, MOST = 3, 7, 200  # calls
PROFILED = 3


class Timing(NamedTuple):
    """Seconds per call: median, 10th and 90th percentile, number of calls."""

    median: float
    p10: float
    p90: float
    calls: int


def interleaved(
    calls: Sequence[Callable[[], object]], device: torch.device, seconds: float = 1.0
) -> list[Timing]:
    """Time several functions in turn, A B C A B C ..., so that a drifting machine hits all.

    Each is called for about `seconds` in total after a warm-up, at least LEAST times and at most
    MOST times.
    """

    def once(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(WARMUP):
        slowest = max(once(call) for call in calls)
    rounds = min(MOST, max(LEAST, int(seconds / slowest)))
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for own, call in zip(samples, calls, strict=True):
            own.append(once(call))
    tenths = [statistics.quantiles(own, n=10, method="inclusive") for own in samples]
    return [Timing(own[4], own[0], own[8], rounds) for own in tenths]


def relative_latency(
    dense: nn.Module, shape: tuple[int, ...], machine: Machine, network: nn.Module
) -> float:
    """Median time of one batch in `network`, as a fraction of that in `dense`, timed in turn."""
    x = torch.randn(shape)
    calls = [eager(model, machine)(x) for model in (dense, network)]
    before, after = interleaved(calls, machine.device)
    return after.median / before.median


def hardware_multiple(device: str, groups: list[Group]) -> int:
    """What widths should be multiples of to be fast, no more than a quarter of a small group.

    16 channels fill half a row of an AMX tile, 8 the 16 bytes that a GPU reads at once. The
    middles of squeeze-and-excitation do not count: they work on single pixels.
    """
    smallest = min((group.size for group in groups if group.norms), default=4)
    return max(1, min(8 if device == "cuda" else 16, smallest // 4))


def layer_times(network: nn.Module, x: Tensor, machine: Machine) -> dict[str, float]:
    """Median seconds that each layer takes on the batch `x`, one by one in PyTorch."""
    network = copy.deepcopy(network)
    samples: dict[str, list[float]] = {}
    started = 0.0  # layers run one after the other

    def clock() -> float:
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)
        return time.perf_counter()

    def start(*_: Any) -> None:
        nonlocal started
        started = clock()

    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            own = samples[name] = []
            layer.register_forward_pre_hook(start)
            layer.register_forward_hook(lambda *_, own=own: own.append(clock() - started))
    call = eager(network, machine)(x)  # copies the hooks too
    for _ in range(WARMUP + LEAST):
        call()
    return {name: statistics.median(own[WARMUP:]) for name, own in samples.items()}


def profile(call: Callable[[], object], device: torch.device, most: int = 5) -> dict[str, Any]:
    """What torch.profiler sees in one call: `cpu_ms` of operators, `cuda_ms` of kernels.

    `operators` are the most expensive ones: name, time and calls. `cuda_ms` is None on the CPU.
    """
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    call()
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(PROFILED):
            call()
        if cuda:
            torch.cuda.synchronize(device)
    # Kernels have events of their own beside those of the operators that launched them.
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    operators = [
        {
            "name": event.key,
            "cpu_ms": event.self_cpu_time_total / 1e3 / PROFILED,
            "cuda_ms": event.self_device_time_total / 1e3 / PROFILED if cuda else None,
            "calls": event.count // PROFILED,
        }
        for event in events
        if event.device_type == DeviceType.CPU and "Synchronize" not in event.key
    ]
    operators.sort(key=lambda o: o["cuda_ms"] if cuda else o["cpu_ms"], reverse=True)
    cuda_ms = sum(kernel.self_device_time_total for kernel in kernels) / 1e3 / PROFILED
    return {
        "cpu_ms": sum(operator["cpu_ms"] for operator in operators),
        "cuda_ms": cuda_ms if cuda else None,
        "operators": operators[:most],
    }
