"""Memory of inference."""

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from torch import nn

from models import build, new_spec, spec_of
from utils.device import Machine

from .engines import ENGINES, FILES, IN_TORCH, write_for
from .runtimes import FORMATS

RESET_PEAK = Path("/proc/self/clear_refs")  # takes a 5; proc(5)


def peak_memory(
    network: nn.Module, shape: tuple[int, ...], machine: Machine, engine: str
) -> int | None:
    """Bytes that a network on the CPU needs at its peak for one batch of `shape`.

    On CUDA what PyTorch's allocator held at most; on the CPU the growth of the resident set of a
    fresh process, from before the network is loaded to after the batch. None where the kernel
    does not tell (anything but Linux), where it would be the compiler that is measured, and for
    what PyTorch's allocator does not see.
    """
    if machine.device.type == "cuda":
        return _allocated(network, shape, machine, engine) if engine in IN_TORCH else None
    if engine == "compile" or not RESET_PEAK.exists():
        return None
    # A fresh process, since this one's allocator keeps what earlier networks gave back.
    how = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
    with (
        tempfile.TemporaryDirectory() as folder,
        _inside("/"),
        ProcessPoolExecutor(1, _fresh(), **how) as pool,
    ):
        # Here, since what writes a file needs more memory than what runs it.
        if engine in FILES:
            file = write_for(engine, network, shape[-1], Path(folder))
        else:
            file = Path(folder, "network.pt")
            torch.save((spec_of(network), network.state_dict()), file)
        with _uninterrupted():
            growth = pool.submit(_resident_growth, file, shape, machine, engine)
        return growth.result()


def _fresh() -> BaseContext:
    """Starts processes, where it can by a fork of one that has only imported PyTorch."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["torch"])  # which takes seconds
    try:
        with _uninterrupted():
            forkserver.ensure_running()
    except OSError:  # before Python 3.14, the path of a temporary folder may be too long for it
        return multiprocessing.get_context("spawn")
    return forks


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back; for good in processes that start here, as their parent alone answers it."""
    resource_tracker.ensure_running()  # when it starts, it lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Work in another folder: a new Python imports from where it is started, and stays there."""
    here = os.open(".", os.O_RDONLY)  # its name may be gone meanwhile
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _allocated(network: nn.Module, shape: tuple[int, ...], machine: Machine, engine: str) -> int:
    before = torch.cuda.memory_allocated()
    run = ENGINES[engine](network, machine)(torch.randn(shape))
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _resident_growth(file: Path, shape: tuple, machine: Machine, engine: str) -> int | None:
    tiny, x = build(new_spec(20, 10, width=1, shortcut="B")), torch.randn(shape)
    ENGINES[engine](tiny, machine)(x[:1])()  # what the first one sets up is no network's
    try:
        RESET_PEAK.write_text("5")
    except OSError:
        return None
    before = _peak()
    if engine in FILES:
        bind = FORMATS[FILES[engine].format].load(file, machine)
    else:
        bind = ENGINES[engine](build(*torch.load(file, weights_only=True)), machine)
    bind(x)()
    return _peak() - before


def _peak() -> int:
    """The largest resident set since RESET_PEAK was written."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024
