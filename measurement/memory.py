"""Memory of inference."""

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
    if engine == "compile":
        return None
    # A fresh process, since this one's allocator keeps what earlier networks gave back.
    fresh = multiprocessing.get_context("spawn")
    how = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
    with (
        tempfile.TemporaryDirectory() as folder,
        _inside(folder),
        ProcessPoolExecutor(1, fresh, **how) as pool,
    ):
        # Here, since what writes a file needs more memory than what runs it.
        if engine in FILES:
            file = write_for(engine, network, shape[-1], Path(folder))
        else:
            file = Path(folder, "network.pt")
            torch.save((spec_of(network), network.state_dict()), file)
        return pool.submit(_resident_growth, file, shape, machine, engine).result()


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Work in an empty folder: a new Python imports from where it is started."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def _allocated(network: nn.Module, shape: tuple[int, ...], machine: Machine, engine: str) -> int:
    before = torch.cuda.memory_allocated()
    run = ENGINES[engine](network, machine)(torch.randn(shape))
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _resident_growth(file: Path, shape: tuple, machine: Machine, engine: str) -> int | None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers an interrupt
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
