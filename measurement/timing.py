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

from utils.machine import Machine

from .engines import eager

WARMUP = 3
PROFILED = 3  # calls


class Timing(NamedTuple):
    """Seconds per call: median, 10th and 90th percentile, number of calls."""

    median: float
    p10: float
    p90: float
    calls: int


def interleaved(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
) -> list[Timing]:
    """Time several functions in turn, A B C A B C ..., so that a drifting machine hits all.

    Each is called at least `least` times and for about `seconds` in total, after a warm-up.
    """

    def once(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(WARMUP):
        slowest = max(once(call) for call in calls)
    rounds = min(most, max(least, int(seconds / slowest)))
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for own, call in zip(samples, calls, strict=True):
            own.append(once(call))
    return [_summary(own) for own in samples]


def _summary(samples: list[float]) -> Timing:
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(statistics.median(samples), tenths[0], tenths[-1], len(samples))


def relative_latency(
    dense: nn.Module, shape: tuple[int, ...], machine: Machine, network: nn.Module
) -> float:
    """Median time of one batch in `network`, as a fraction of that in `dense`, timed in turn."""
    x = torch.randn(shape)
    calls = [eager(model, machine)(x) for model in (dense, network)]
    times = interleaved(calls, machine.device, seconds=1.0, least=7)
    return times[1].median / times[0].median


def layer_times(network: nn.Module, x: Tensor, machine: Machine) -> dict[str, float]:
    """Median seconds that each layer takes on the batch `x`, one by one in PyTorch."""
    network = copy.deepcopy(network)
    samples: dict[str, list[float]] = {}

    def clock() -> float:
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)
        return time.perf_counter()

    def watch(name: str, layer: nn.Module) -> None:
        started: list[float] = []
        layer.register_forward_pre_hook(lambda *_: started.append(clock()))
        layer.register_forward_hook(
            lambda *_: samples.setdefault(name, []).append(clock() - started.pop())
        )

    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            watch(name, layer)
    call = eager(network, machine)(x)  # copies the hooks too
    for _ in range(WARMUP + 7):
        call()
    return {name: statistics.median(own[WARMUP:]) for name, own in samples.items()}


class Profile(NamedTuple):
    """Milliseconds of one batch, and of its most expensive operators: name, time and calls."""

    cpu_ms: float
    cuda_ms: float | None
    operators: list[dict[str, Any]]


def profile(call: Callable[[], object], device: torch.device, most: int = 5) -> Profile:
    """What torch.profiler sees: time of operators on the CPU, and of kernels on CUDA, per call."""
    kinds = [ProfilerActivity.CPU]
    on_cuda = device.type == "cuda"
    if on_cuda:
        kinds.append(ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(PROFILED):
            call()
        if on_cuda:
            torch.cuda.synchronize(device)
    # Kernels have events of their own beside those of the operators that launched them.
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    operators = [
        {
            "name": event.key,
            "cpu_ms": event.self_cpu_time_total / 1e3 / PROFILED,
            "cuda_ms": event.self_device_time_total / 1e3 / PROFILED if on_cuda else None,
            "calls": event.count // PROFILED,
        }
        for event in events
        if event.device_type == DeviceType.CPU and "Synchronize" not in event.key
    ]
    cpu_ms = sum(operator["cpu_ms"] for operator in operators)
    cuda_ms = sum(kernel.self_device_time_total for kernel in kernels) / 1e3 / PROFILED
    operators.sort(key=lambda o: o["cuda_ms"] if on_cuda else o["cpu_ms"], reverse=True)
    return Profile(cpu_ms, cuda_ms if on_cuda else None, operators[:most])
