"""Memory of inference."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

from models import build, new_spec
from utils import checkpoint as checkpoints
from utils.machine import Machine, prepare

from .engines import ENGINES, RUNTIMES, Bind, write_onnx

IN_TORCH = ("eager", "fused")  # whose memory PyTorch's allocator sees; graphs have their own


def peak_memory(
    path: Path, shape: tuple[int, ...], machine: Machine, precision: str, engine: str
) -> int | None:
    """Bytes that the network of a checkpoint needs at its peak for one batch of `shape`.

    On CUDA what PyTorch's allocator held at most; on the CPU the growth of the resident set of a
    fresh process, from before the network is loaded to after the batch. None where the kernel
    does not tell (anything but Linux), where it would be the compiler that is measured, and for
    what PyTorch's allocator does not see.
    """
    if machine.device.type == "cuda":
        return _allocated(path, shape, machine, engine) if engine in IN_TORCH else None
    if engine == "compile":
        return None
    # A fresh process, since this one's allocator keeps what earlier networks gave back.
    context = multiprocessing.get_context("spawn")
    # The parent alone answers an interrupt.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, context, initializer=signal.signal, initargs=ignore) as pool,
    ):
        if engine in RUNTIMES:  # what writes the file needs more memory than what runs it
            network, path = _load(path), Path(folder, "model.onnx")
            write_onnx(network, shape[-1], path)
        threads = torch.get_num_threads()
        return pool.submit(_resident_growth, path, shape, threads, precision, engine).result()


def _allocated(path: Path, shape: tuple[int, ...], machine: Machine, engine: str) -> int:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    run = ENGINES[engine].prepare(_load(path), machine)(torch.randn(shape))
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _load(path: Path) -> nn.Module:
    return checkpoints.model_of(checkpoints.load(path))


def _resident_growth(
    path: Path, shape: tuple[int, ...], threads: int, precision: str, engine: str
) -> int | None:
    machine = prepare("cpu", precision, threads, keep_memory=False)
    x = torch.randn(shape)
    with tempfile.TemporaryDirectory() as folder:  # what the first one sets up is no network's
        tiny = build(new_spec(20, 10, width=1, shortcut="B")).eval()
        file = Path(folder, "tiny.onnx")
        if engine in RUNTIMES:
            write_onnx(tiny, shape[-1], file)
        _prepared(engine, lambda: tiny, file, machine)(x[:1])()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here; proc(5)
        before = _resident("VmRSS")
        _prepared(engine, lambda: _load(path), path, machine)(x)()
        return _resident("VmHWM") - before
    except OSError:
        return None


def _prepared(engine: str, network: Callable[[], nn.Module], file: Path, machine: Machine) -> Bind:
    """The engine with an ONNX file, if it is one for these, or else with a network."""
    if engine in RUNTIMES:
        return RUNTIMES[engine](file, machine)
    return ENGINES[engine].prepare(network(), machine)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
