"""Inference engines: ways of running one and the same network.

An engine takes a network and the machine, prepares the network once, and returns a function that
binds it to a batch of images; what that returns runs the batch and gives the logits:

    run = ENGINES["fused"].prepare(network, machine)(images)
    logits = run()

So that what is timed is inference alone: folding, converting, compiling lie behind it. The
network itself is never changed.
"""

from __future__ import annotations

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
from utils.exports import FORMATS, ONNX, require
from utils.machine import Machine, place

Bind = Callable[[Tensor], Callable[[], Tensor]]


class Engine(NamedTuple):
    """How to prepare a network, the optional packages that this needs, and if it takes seconds."""

    prepare: Callable[[nn.Module, Machine], Bind]
    needs: tuple[str, ...] = ()
    slow: bool = True


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
    start = _in_torch(folded(network), machine, partial(torch.compile, dynamic=False))

    def bind(images: Tensor) -> Callable[[], Tensor]:
        run = start(images)
        # Not as options of torch.compile: its front end would not see that weights are frozen.
        with torch._inductor.config.patch({"freezing": True, glue: True}):
            run()
        return run

    return bind


def load_onnxruntime(file: Path, machine: Machine) -> Bind:
    """An ONNX file in ONNX Runtime, in float32: its convolutions on CPUs know no bf16.

    On CUDA a run includes the way of the images to the device and of the logits back.
    """
    (ort,) = require("onnxruntime")
    provider = "CUDAExecutionProvider" if machine.device.type == "cuda" else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise ValueError(f"--engines onnxruntime: the installed package has no {provider}")
    content = file.read_bytes()

    def bind(images: Tensor) -> Callable[[], Tensor]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_free_dimension_override_by_name("batch", len(images))
        session = ort.InferenceSession(content, options, providers=[provider])
        feed = {"images": images.float().cpu().contiguous().numpy()}
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    return bind


def load_openvino(file: Path, machine: Machine) -> Bind:
    """An ONNX file in OpenVINO, on the CPU, in the type of the machine."""
    if machine.device.type != "cpu":
        raise ValueError("--engines openvino: here it runs on the CPU only; use --device cpu")
    (ov,) = require("openvino")
    core = ov.Core()
    model = core.read_model(file.read_bytes())
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if machine.dtype == torch.bfloat16 else "f32",
    }

    def bind(images: Tensor) -> Callable[[], Tensor]:
        model.reshape(list(images.shape))
        program = core.compile_model(model, "CPU", hints)
        feed = [images.float().cpu().contiguous().numpy()]
        return lambda: torch.from_numpy(program(feed, share_inputs=True)[0])

    return bind


RUNTIMES = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


def write_onnx(network: nn.Module, size: int, file: Path) -> None:
    """The network as an ONNX file for images of `size` pixels, for one of RUNTIMES to load."""
    network = copy.deepcopy(network).cpu().float().eval()
    FORMATS["onnx"].write(network, torch.zeros(2, 3, size, size), file, {})


def _through_onnx(runtime: str, network: nn.Module, machine: Machine) -> Bind:
    @cache
    def load(size: int) -> Bind:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            write_onnx(network, size, file)
            return RUNTIMES[runtime](file, machine)

    return lambda images: load(images.shape[-1])(images)


ENGINES = {
    "eager": Engine(eager, slow=False),
    "fused": Engine(fused, slow=False),
    "compile": Engine(compiled),
    "onnxruntime": Engine(partial(_through_onnx, "onnxruntime"), (*ONNX, "onnxruntime")),
    "openvino": Engine(partial(_through_onnx, "openvino"), (*ONNX, "openvino")),
}


def precision_of(engine: str, machine: Machine) -> str:
    """The type that an engine computes in."""
    return "bf16" if machine.dtype == torch.bfloat16 and engine != "onnxruntime" else "fp32"


def folded(network: nn.Module) -> nn.Module:
    """A copy whose BatchNorms have become part of the convolutions before them, in float32."""
    network = copy.deepcopy(network).eval()
    for conv, bn in itertools.pairwise(layer_costs(spec_of(network))):
        if bn.kind == "bn":
            pair = network.get_submodule(conv.name), network.get_submodule(bn.name)
            network.set_submodule(conv.name, fuse_conv_bn_eval(*pair))
            network.set_submodule(bn.name, nn.Identity())
    return network


def _in_torch(
    network: nn.Module,
    machine: Machine,
    transform: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda network: network,
) -> Bind:
    # Converted once, here: autocast would convert the weights again in every call.
    run = transform(place(network, machine).to(machine.dtype).eval())

    def bind(images: Tensor) -> Callable[[], Tensor]:
        images = images.to(machine.device, machine.dtype, memory_format=torch.channels_last)

        def call() -> Tensor:
            with torch.inference_mode():
                return run(images)

        return call

    return bind
