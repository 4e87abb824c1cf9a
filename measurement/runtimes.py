"""The runtimes: one table of the files that run without this project.

For each format: how a file is written, how its metadata is read, and how it is loaded into what
runs it. The engines of benchmark.py and the check of export.py both go through here.
"""

import importlib.util
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.device import Machine

Metadata = dict[str, Any]
Call = Callable[[], Tensor]  # runs a batch and gives its logits
Bind = Callable[[Tensor], Call]
ANY_BATCH = ({0: torch.export.Dim("batch")},)
REFERENCE = Machine(torch.device("cpu"), torch.float32)  # whose logits count as exact


class MissingPackage(Exception):
    """An optional package that is not installed."""


def require(*packages: str) -> None:
    """Raise MissingPackage, which says how to get it, if one of the packages is not installed."""
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError as error:
        advice = "pip install -r requirements-deploy.txt"
        missing = isinstance(error, ModuleNotFoundError)
        told = f"{error.name} is not installed" if missing else f"{package}: {error}"
        raise MissingPackage(f"{told}; {advice}") from None


class Format(NamedTuple):
    """A file format, and the runtime that it is for.

    `write(network, images, file, metadata, int8)` takes at least two images; the file then takes
    batches of any size. With int8 the images also tell the ranges of the activations, and
    BatchNorm should be folded. `metadata(file)` executes nothing, whatever the file is.
    `load(file, machine)` is for files that were written just now: it may execute what they hold.
    It returns a function that binds the file to a batch; what that returns gives the logits.
    """

    suffix: str
    needs: tuple[str, ...]  # optional packages
    write: Callable[[nn.Module, Tensor, Path, Metadata, bool], None]
    metadata: Callable[[Path], Metadata]
    load: Callable[[Path, Machine], Bind]
    int8: bool  # whether it can be quantized


def _to_onnx(network: nn.Module, images: Tensor, int8: bool) -> Any:
    """An onnx.ModelProto."""
    options = {"dynamo": True, "verbose": False, "dynamic_shapes": ANY_BATCH}
    names = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(network.eval(), (images[:2],), **options, **names)
    return _quantized(program, images) if int8 else program.model_proto


def _quantized(program: torch.onnx.ONNXProgram, images: Tensor) -> Any:
    """Weights as int8, with a scale for each channel; activations as uint8, by their range.

    Unsigned, since ONNX Runtime is slow with signed ones on x86. Without VNNI (before 2019) sums
    of a product with them may saturate there.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Batches(CalibrationDataReader):
        left = iter(images.split(64))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch.numpy()}

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        exact, ready, quantized = (Path(folder, f"{n}.onnx") for n in ("exact", "ready", "int8"))
        program.save(exact)
        quant_pre_process(exact, ready, skip_symbolic_shape=True)
        quantize_static(ready, quantized, Batches(), per_channel=True, **types)
        return onnx.load(quantized)


def _write_onnx(
    network: nn.Module, images: Tensor, file: Path, metadata: Metadata, int8: bool
) -> None:
    import onnx

    model = _to_onnx(network, images, int8)
    onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.save(model, file)


def _onnx_metadata(file: Path) -> Metadata:
    import onnx

    properties = onnx.load(file, load_external_data=False).metadata_props
    return {item.key: json.loads(item.value) for item in properties}


def _load_onnx(file: Path, machine: Machine) -> Bind:
    """In ONNX Runtime, in float32: its convolutions on CPUs know no bf16.

    On CUDA a run includes the way of the images to the device and of the logits back.
    """
    import onnxruntime as ort

    provider = "CUDAExecutionProvider" if machine.device.type == "cuda" else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise ValueError(f"--engines onnxruntime: the installed package has no {provider}")
    content = file.read_bytes()

    def bind(images: Tensor) -> Call:
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_free_dimension_override_by_name("batch", len(images))
        session = ort.InferenceSession(content, options, providers=[provider])
        feed = {"images": images.cpu().contiguous().numpy()}
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    return bind


def _write_torch(
    network: nn.Module, images: Tensor, file: Path, metadata: Metadata, int8: bool
) -> None:
    blank = torch.zeros_like(images[:2])  # the file keeps it
    program = torch.export.export(network.eval(), (blank,), dynamic_shapes=ANY_BATCH)
    whole = io.BytesIO()  # where a file cannot be written, PyTorch's own writer aborts the process
    torch.export.save(program, whole, extra_files={"metadata.json": json.dumps(metadata)})
    file.write_bytes(whole.getbuffer())


def _torch_metadata(file: Path) -> Metadata:
    # Not by torch.export.load, which unpickles.
    with zipfile.ZipFile(file) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/extra/metadata.json"))
        return json.loads(archive.read(name))


def _load_torch(file: Path, machine: Machine) -> Bind:
    """In PyTorch, in float32."""
    run = torch.inference_mode()(torch.export.load(file).module())
    return lambda images: partial(run, images)


def _write_openvino(
    network: nn.Module, images: Tensor, file: Path, metadata: Metadata, int8: bool
) -> None:
    import openvino as ov

    model = ov.convert_model(io.BytesIO(_to_onnx(network, images, int8).SerializeToString()))
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), ["pruning", key])
    try:
        ov.save_model(model, file, compress_to_fp16=False)  # and its weights beside it, as .bin
    except RuntimeError as error:  # of C++ streams, which do not say why
        raise OSError(f"{file} cannot be written ({error}); is there room?") from None


def _openvino_metadata(file: Path) -> Metadata:
    import openvino as ov

    notes = ov.Core().read_model(file).get_rt_info("pruning")
    return {key: json.loads(value) for key, value in notes.value.items()}


def _load_openvino(file: Path, machine: Machine) -> Bind:
    """In OpenVINO, on the CPU, in the type of the machine."""
    import openvino as ov

    if machine.device.type != "cpu":
        raise ValueError("--engines openvino: here it runs on the CPU only; use --device cpu")
    core = ov.Core()
    model = core.read_model(file)
    precision = "bf16" if machine.dtype == torch.bfloat16 else "f32"
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    hints["INFERENCE_NUM_THREADS"] = torch.get_num_threads()

    def bind(images: Tensor) -> Call:
        model.reshape(list(images.shape))
        program = core.compile_model(model, "CPU", hints)
        feed = [images.cpu().contiguous().numpy()]
        return lambda: torch.from_numpy(program(feed, share_inputs=True)[0])

    return bind


ONNX = ("onnx", "onnxscript", "onnxruntime")
OPENVINO = ("onnx", "onnxscript", "openvino")
INT8_NEEDS = ("onnxruntime",)  # which quantizes for both
FORMATS = {
    "onnx": Format(".onnx", ONNX, _write_onnx, _onnx_metadata, _load_onnx, int8=True),
    "torch": Format(".pt2", (), _write_torch, _torch_metadata, _load_torch, int8=False),
    "openvino": Format(
        ".xml", OPENVINO, _write_openvino, _openvino_metadata, _load_openvino, int8=True
    ),
}
