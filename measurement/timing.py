"""Time of inference."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from models import Group
from utils.device import Machine

from .engines import eager

WARMUP, LEAST, MOST, PROFILED = 3, 7, 200, 3  # calls


class Timing(NamedTuple):
    """Seconds per call: median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


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
        return _clock(device) - start

    for _ in range(WARMUP):
        slowest = max(once(call) for call in calls)
    rounds = min(MOST, max(LEAST, int(seconds / slowest)))
    samples = [[once(call) for call in calls] for _ in range(rounds)]
    return [Timing(*own) for own in np.quantile(samples, (0.5, 0.1, 0.9), axis=0).T.tolist()]


def _clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
    moments: dict[str, list[float]] = {}  # of each layer, starts and ends in turn
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            own = moments[name] = []
            layer.register_forward_pre_hook(lambda *_, own=own: own.append(_clock(machine.device)))
            layer.register_forward_hook(lambda *_, own=own: own.append(_clock(machine.device)))
    call = eager(network, machine)(x)  # copies the hooks too
    for _ in range(WARMUP + LEAST):
        call()
    return {name: np.median(np.diff(own)[2 * WARMUP :: 2]).item() for name, own in moments.items()}


def profile(call: Callable[[], object], device: torch.device, most: int = 5) -> dict[str, Any]:
    """What torch.profiler sees in one call: `cpu_ms` of operators, `cuda_ms` of kernels.

    `operators` are the most expensive ones: name and times. `cuda_ms` is None on the CPU.
    """
    cuda = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]
    call()
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(PROFILED):
            call()
        if cuda:
            torch.cuda.synchronize(device)
    events = profiler.key_averages()
    # Kernels have events of their own beside those of the operators that launched them.
    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    cuda_ms = sum(kernel.self_device_time_total for kernel in kernels) / 1e3 / PROFILED
    operators = [
        {
            "name": event.key,
            "cpu_ms": event.self_cpu_time_total / 1e3 / PROFILED,
            "cuda_ms": event.self_device_time_total / 1e3 / PROFILED if cuda else None,
        }
        for event in events
        if event not in kernels and "Synchronize" not in event.key
    ]
    operators.sort(key=lambda operator: operator["cuda_ms" if cuda else "cpu_ms"], reverse=True)
    cpu_ms = sum(operator["cpu_ms"] for operator in operators)
    return {"cpu_ms": cpu_ms, "cuda_ms": cuda_ms if cuda else None, "operators": operators[:most]}
