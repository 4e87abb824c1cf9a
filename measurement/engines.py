"""Inference engines: ways of running one and the same network.

An engine takes a network and the machine, prepares the network once, and returns a function that
binds it to a batch of images; what that returns runs the batch and gives the logits:

    run = ENGINES["fused"](network, machine)(images)
    logits = run()

So that what is timed is inference alone: folding, converting, compiling lie behind it. The
network itself is never changed.
"""

import copy
import itertools
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import layer_costs, spec_of
from utils.device import Machine, place

from .runtimes import FORMATS, INT8_NEEDS, Bind, Call


def eager(network: nn.Module, machine: Machine) -> Bind:
    """PyTorch layer by layer; weights and images in the type of the machine, without autocast."""
    return _in_torch(copy.deepcopy(network), machine)


def fused(network: nn.Module, machine: Machine) -> Bind:
    """The same, with every BatchNorm folded into the convolution before it."""
    return _in_torch(folded(network), machine)


def compiled(network: nn.Module, machine: Machine) -> Bind:
    """torch.compile for one shape of the batch, with the weights frozen into the program.

    Freezing lays the weights out for the kernels ahead of time. On the CPU the calls between the
    kernels are compiled too, on CUDA they are recorded as a graph: a small network is nothing
    but such calls.
    """
    # Each network and each batch is a program of its own, and none may fall back to eager.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
    glue = "triton.cudagraphs" if machine.device.type == "cuda" else "cpp_wrapper"
    start = _in_torch(torch.compile(folded(network), dynamic=False), machine)

    def bind(images: Tensor) -> Call:
        run = start(images)
        # Not as options of torch.compile: its front end would not see that weights are frozen.
        with torch._inductor.config.patch({"freezing": True, glue: True}):
            run()
        return run

    return bind


def _from_file(engine: str, network: nn.Module, machine: Machine) -> Bind:
    """The file of a network in the runtime of its format."""

    @cache
    def load(size: int) -> Bind:
        with tempfile.TemporaryDirectory() as folder:
            file = write_for(engine, network, size, Path(folder))
            return FORMATS[FILES[engine].format].load(file, machine)

    return lambda images: load(images.shape[-1])(images)


def write_for(engine: str, network: nn.Module, size: int, folder: Path) -> Path:
    """The network as a file in `folder` for images of `size` pixels; returns the file.

    With int8 the ranges are those of random images, which is good enough for its time.
    """
    format_ = FORMATS[FILES[engine].format]
    file, images = folder / f"model{format_.suffix}", torch.randn(64, 3, size, size)
    int8 = FILES[engine].int8
    format_.write(folded(network) if int8 else network, images, file, {}, int8)
    return file


class FileEngine(NamedTuple):
    """What a runtime loads."""

    format: str
    int8: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Optional packages."""
        return FORMATS[self.format].needs + INT8_NEEDS * self.int8


IN_TORCH = ("eager", "fused")  # quick to prepare, and PyTorch's profiler and allocator see them
FILES = {
    "onnxruntime": FileEngine("onnx"),
    "openvino": FileEngine("openvino"),
    "onnxruntime-int8": FileEngine("onnx", int8=True),
    "openvino-int8": FileEngine("openvino", int8=True),
}
ENGINES: dict[str, Callable[[nn.Module, Machine], Bind]] = {
    "eager": eager,
    "fused": fused,
    "compile": compiled,
    **{engine: partial(_from_file, engine) for engine in FILES},
}


def folded(network: nn.Module) -> nn.Module:
    """A copy whose BatchNorms have become part of the convolutions before them, in float32."""
    network = copy.deepcopy(network).eval()
    for conv, bn in itertools.pairwise(layer_costs(spec_of(network))):
        if bn.kind == "bn":
            pair = network.get_submodule(conv.name), network.get_submodule(bn.name)
            network.set_submodule(conv.name, fuse_conv_bn_eval(*pair))
            network.set_submodule(bn.name, nn.Identity())
    return network


def _in_torch(network: nn.Module, machine: Machine) -> Bind:
    # Converted once, here: autocast would convert the weights again in every call.
    run = torch.inference_mode()(place(network, machine).to(machine.dtype).eval())
    order = torch.channels_last
    return lambda x: partial(run, x.to(machine.device, machine.dtype, memory_format=order))
