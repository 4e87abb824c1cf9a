"""Time and memory of inference."""

from __future__ import annotations

import copy
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoint as checkpoints
from .machine import Machine, place, prepare

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


def forward(model: nn.Module, x: Tensor, machine: Machine) -> Callable[[], Tensor]:
    """One inference call, ready to be timed, in the type of the machine.

    The weights are converted once, here: autocast would convert them again in every call.
    """
    model = place(model, machine).to(machine.dtype).eval()
    x = x.to(machine.device, machine.dtype, memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def relative_latency(
    dense: nn.Module, shape: tuple[int, ...], machine: Machine, network: nn.Module
) -> float:
    """Median time of one batch in `network`, as a fraction of that in `dense`, timed in turn."""
    x = torch.randn(shape)
    # Copies, since timing converts a network to the type of the machine.
    calls = [forward(copy.deepcopy(model), x, machine) for model in (dense, network)]
    times = interleaved(calls, machine.device, seconds=1.0, least=7)
    return times[1].median / times[0].median


def peak_memory(path: Path, shape: tuple[int, ...], machine: Machine, precision: str) -> int | None:
    """Bytes that the network of a checkpoint needs at its peak for one batch of `shape`.

    On CUDA what the allocator held at most; on the CPU the growth of the resident set of a fresh
    process, from before the network is loaded to after the batch. None where the kernel does
    not tell (anything but Linux).
    """
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        forward(_load(path), torch.randn(shape), machine)()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # A fresh process, since this one's allocator keeps what earlier networks gave back.
    context = multiprocessing.get_context("spawn")
    # The parent alone answers an interrupt.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=ignore) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_resident_growth, path, shape, threads, precision).result()


def _load(path: Path) -> nn.Module:
    return checkpoints.model_of(checkpoints.load(path))


def _resident_growth(
    path: Path, shape: tuple[int, ...], threads: int, precision: str
) -> int | None:
    machine = prepare("cpu", precision, threads, keep_memory=False)
    x = torch.randn(shape)
    forward(nn.Conv2d(3, 8, 3), x[:1], machine)()  # what the first one sets up is no network's
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here; proc(5)
        before = _resident("VmRSS")
        forward(_load(path), x, machine)()
        return _resident("VmHWM") - before
    except OSError:
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
