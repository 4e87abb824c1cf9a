"""The machine a stage runs on: device, precision, threads, allocator, processes."""

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from .config import RunConfig


class Machine(NamedTuple):
    """Where to compute, and in which type convolutions and matrix products run."""

    device: torch.device
    dtype: torch.dtype  # torch.float32 or torch.bfloat16

    def autocast(self) -> torch.autocast:
        """Mixed precision where `dtype` asks for it; parameters stay in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def prepare(config: RunConfig) -> Machine:
    """Set this process up for computing; call once, before the first tensor.

    Raises ValueError for a device that is not there.
    """
    name, cuda = config.device, torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device {name}: it is auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not cuda:
        raise ValueError(f"--device {name}: no CUDA device found; use --device cpu")
    if name == "cuda":  # set_device wants a number
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(name)
    if config.threads:
        torch.set_num_threads(config.threads)
    elif quota := cpu_quota():  # PyTorch counts the processors, whatever share of them is ours
        torch.set_num_threads(min(quota, torch.get_num_threads()))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    else:
        _keep_freed_memory()
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    auto = config.precision == "auto" and _gains_from_bf16(device)
    bf16 = auto or config.precision == "bf16"
    return Machine(device, torch.bfloat16 if bf16 else torch.float32)


def cpu_quota(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """CPUs, rounded up, that this process's cgroup and those above it may use; None if no limit.

    `cpu.max` holds a quota and a period in microseconds (cgroup version 2; containers, SLURM).
    """
    lines = own.read_text().splitlines() if own.exists() else []
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    group, limits = groups / path.lstrip("/"), []
    for folder in (group, *group.parents):
        if (file := folder / "cpu.max").is_file():
            quota, period = file.read_text().split()
            limits += [-(-int(quota) // int(period))] if quota != "max" else []
    return min(limits, default=None)


def place(model: nn.Module, machine: Machine) -> nn.Module:
    """The same network on the device, its weights in the order that convolutions like there."""
    return model.to(machine.device, memory_format=torch.channels_last)


def _gains_from_bf16(device: torch.device) -> bool:
    """True where bf16 has units of its own: Ampere and later, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # none is public in 2.8
    return any(getattr(torch.cpu, query, bool)() for query in queries)


def _keep_freed_memory() -> None:
    """Let glibc keep what it is given back, instead of returning it to the kernel.

    By default each large activation is mapped afresh and faulted in page by page, which costs
    more time on a CPU than the arithmetic on it. No effect on results, nor outside glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**28)


def rank() -> int:
    """Number of this process; 0 writes and speaks. Also before it has met the others."""
    if dist.is_initialized():
        return dist.get_rank()
    started_by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return int(os.environ["RANK"]) if started_by_torchrun else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def describe(machine: Machine) -> dict[str, Any]:
    """What a reader of a measurement must know, as plain types."""
    cuda = machine.device.type == "cuda"
    name = torch.cuda.get_device_name(machine.device) if cuda else cpu_name()
    hardware = {"device": machine.device.type, "name": name, "threads": torch.get_num_threads()}
    precision = "bf16" if machine.dtype == torch.bfloat16 else "fp32"
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    return {**hardware, "processes": world_size(), "precision": precision, **versions}


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A processor's name, and the numbers of its kind: "AMD EPYC 26.2.1".

    The name alone may stand for several processors, in virtual machines above all. The numbers are
    family, model and stepping on x86, implementer and part on Arm; none where none are told.
    """
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    kinds = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
    return f"{name} {'.'.join(told[kind] for kind in kinds if kind in told)}".rstrip()
