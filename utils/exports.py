"""File formats that run without this project: writing them, reading their notes, running them."""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Metadata = dict[str, Any]
Runner = Callable[[Tensor], Tensor]


class MissingPackage(Exception):
    """An optional package that is not installed."""


def require(*names: str) -> list[ModuleType]:
    """Import optional packages, or raise MissingPackage, which says how to get them."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise MissingPackage(
            f"{error.name} is not installed; pip install -r requirements-deploy.txt"
        ) from None


class Format(NamedTuple):
    """How to write a network with its notes, to read the notes, and to run the file in float32;
    and the optional packages that this needs.

    `write(network, example, file, metadata)` takes a batch of at least two images; the file then
    takes batches of any size.
    """

    suffix: str
    write: Callable[[nn.Module, Tensor, Path, Metadata], None]
    metadata: Callable[[Path], Metadata]
    runner: Callable[[Path], Runner]
    needs: tuple[str, ...] = ()


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


def _write_onnx(network: nn.Module, example: Tensor, file: Path, metadata: Metadata) -> None:
    onnx, _ = require("onnx", "onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations inside the exporter
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=_any_batch(),
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in metadata.items()})
    onnx.save(model, file)


def _onnx_metadata(file: Path) -> Metadata:
    (onnx,) = require("onnx")
    properties = onnx.load(file, load_external_data=False).metadata_props
    return {item.key: json.loads(item.value) for item in properties}


def _run_onnx(file: Path) -> Runner:
    (ort,) = require("onnxruntime")
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_torch(network: nn.Module, example: Tensor, file: Path, metadata: Metadata) -> None:
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=_any_batch())
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})


def _torch_metadata(file: Path) -> Metadata:
    extra = {"metadata.json": ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra["metadata.json"])


def _run_torch(file: Path) -> Runner:
    program = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return program(images)

    return run


def _write_openvino(network: nn.Module, example: Tensor, file: Path, metadata: Metadata) -> None:
    (ov,) = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        _write_onnx(network, example, Path(folder, "model.onnx"), {})
        model = ov.convert_model(Path(folder, "model.onnx"))
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), ["pruning", key])
    ov.save_model(model, file, compress_to_fp16=False)  # and its weights beside it, as .bin


def _openvino_metadata(file: Path) -> Metadata:
    (ov,) = require("openvino")
    notes = ov.Core().read_model(file).get_rt_info("pruning")
    return {key: json.loads(value) for key, value in notes.value.items()}


def _run_openvino(file: Path) -> Runner:
    (ov,) = require("openvino")
    program = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(program([images.numpy()])[0].copy())


ONNX = ("onnx", "onnxscript")
FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _onnx_metadata, _run_onnx, (*ONNX, "onnxruntime")),
    "torch": Format(".pt2", _write_torch, _torch_metadata, _run_torch),
    "openvino": Format(
        ".xml", _write_openvino, _openvino_metadata, _run_openvino, (*ONNX, "openvino")
    ),
}
