"""Time of inference."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from utils.machine import Machine, place

from .engines import eager

WARMUP = 3


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
    network = place(copy.deepcopy(network), machine).to(machine.dtype).eval()
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
    call = eager(network, machine)(x)
    for _ in range(WARMUP + 7):
        call()
    return {name: statistics.median(own[WARMUP:]) for name, own in samples.items()}


class Profile(NamedTuple):
    """Milliseconds of one batch, and of its most expensive operators: name, time and calls."""

    cpu_ms: float
    cuda_ms: float | None
    operators: list[dict[str, Any]]


def profile(call: Callable[[], object], device: torch.device, most: int = 5) -> Profile:
    """What torch.profiler sees of one call: time on the CPU, and of the kernels on CUDA."""
    kinds = [ProfilerActivity.CPU]
    on_cuda = device.type == "cuda"
    if on_cuda:
        kinds.append(ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=kinds) as profiler:
        call()
        if on_cuda:
            torch.cuda.synchronize(device)
    operators = [
        {
            "name": event.key,
            "cpu_ms": event.self_cpu_time_total / 1e3,
            "cuda_ms": event.self_device_time_total / 1e3 if on_cuda else None,
            "calls": event.count,
        }
        for event in profiler.key_averages()
    ]
    totals = [sum(o[kind] for o in operators) for kind in ("cpu_ms", "cuda_ms")[: 1 + on_cuda]]
    operators.sort(key=lambda o: o["cuda_ms"] if on_cuda else o["cpu_ms"], reverse=True)
    return Profile(totals[0], totals[1] if on_cuda else None, operators[:most])
