"""The figures of networks in engines: one row for each pair, and where rows are kept."""

import json
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models import channel_groups, costs, layer_costs, spec_of
from pruning.allocation import fast_multiple
from utils.checkpoint import Checkpoint
from utils.device import Machine, describe
from utils.files import locked, write_json
from utils.log import say

from .engines import ENGINES, FILES, eager
from .runtimes import REFERENCE
from .timing import Interval, Quantiles, interleaved, layer_times

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is older than what Python now advises
    from thop import profile as thop

SPEEDUPS = ("latency_speedup", "measured_speedup")  # at batch 1 and at the best
# What report.py reads of every row.
NEEDED = {"sha256", "reference", "machine", "engine", "precision", "remarks", *SPEEDUPS}
BUSY = 1.2  # ratio of the ends of a speedup's interval, on a machine that has other things to do
DRIFT = 1.5  # p90 / p10 of a time, on a machine that changes its speed


class Subject(NamedTuple):
    """A network to be measured, on the CPU and in evaluation mode."""

    name: str
    checkpoint: Checkpoint
    network: nn.Module

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a batch of its images."""
        size = self.checkpoint.image_size
        return batch, 3, size, size


def costs_of(subject: Subject) -> dict[str, Any]:
    """What a network costs whatever runs it: accuracy, parameters, MACs, bytes."""
    checkpoint = subject.checkpoint
    weights = b"".join(map(_bytes, checkpoint.state_dict.values()))
    return {
        "name": subject.name,
        "checkpoint": str(checkpoint.file),
        # What is reported of an unfinished pruning is not of the network that is timed here.
        "top1": None if checkpoint.pending else checkpoint.metrics.get("top1"),
        **costs(subject.network, checkpoint.image_size),
        # A popular tool's count, for comparison, of a network of its own: it leaves buffers behind.
        # It adds normalization and pooling.
        "thop_macs": thop(checkpoint.network(), (torch.randn(subject.shape(1)),), verbose=False)[0],
        "file_bytes": checkpoint.file.stat().st_size,
        # Of the weights alone: the file also has masks and history.
        "compressed_bytes": len(zlib.compress(weights)),
    }


def _bytes(values: Tensor) -> bytes:
    """Of weights, as a file may keep them: in float16 if that loses nothing."""
    half = values.half() if values.is_floating_point() else values
    return (half if half.to(values.dtype).equal(values) else values).numpy().tobytes()


def measure(
    subjects: list[Subject], engine: str, batches: tuple[int, ...], seconds: float, machine: Machine
) -> list[dict[str, Any]]:
    """Time all networks in an engine in turn, at batch 1 and at each of `batches`.

    Returns for each the milliseconds of an image and of the batch with the best throughput, its
    speedups over the first network, and the largest difference of its logits to those of PyTorch in
    float32, on the CPU, on the same images, as a share of the largest. A speedup is the median of
    ratios of neighboring blocks of calls; where the best batches of two networks differ, times the
    first network's rate at this batch over its best.
    """
    bound = [ENGINES[engine](subject.network, machine) for subject in subjects]
    bf16 = machine.dtype == torch.bfloat16 and engine != "onnxruntime"  # see _load_onnx
    precision = "int8" if engine in FILES and FILES[engine].int8 else "bf16" if bf16 else "fp32"
    start = {"engine": engine, "precision": precision}
    rows = [{**start, "logit_difference_share": 0.0, "images_per_second": 0.0} for _ in subjects]
    for batch in dict.fromkeys((1, *batches)):
        say(f"{engine}: {len(subjects)} networks, batch {batch}")
        x = torch.randn(subjects[0].shape(batch))
        calls = [bind(x) for bind in bound]
        times = interleaved(calls, machine.device, seconds)
        first_rate = batch / Quantiles.of(times[0].own).median
        for row, subject, call, timed in zip(rows, subjects, calls, times, strict=True):
            took, speedup = Quantiles.of(timed.own), Interval.of(timed.speedups())
            exact = eager(subject.network, REFERENCE)(x)()
            error = ((call().float().cpu() - exact).abs().max() / exact.abs().max()).item()
            # Not max(), which may lose a NaN.
            row["logit_difference_share"] = np.maximum(row["logit_difference_share"], error).item()
            if batch == 1:
                row |= _parts("latency_ms", took, 1e3) | _parts("latency_speedup", speedup)
            if (rate := batch / took.median) > row["images_per_second"]:
                row |= {"batch_size": batch, "images_per_second": rate}
                row |= _parts("batch_ms", took, 1e3)
                row |= _parts("measured_speedup", speedup, first_rate)
    for row in rows:  # over the first network at its own best batch
        for part in Interval._fields:
            row[_name("measured_speedup", part)] /= rows[0]["images_per_second"]
    return rows


def _parts(name: str, values: Quantiles | Interval, factor: float = 1) -> dict[str, float]:
    return {_name(name, part): value * factor for part, value in values._asdict().items()}


def _name(name: str, part: str) -> str:
    return name if part == "median" else f"{name}_{part}"


def compare(row: dict[str, Any], first: dict[str, Any]) -> None:
    """Add to a row its MAC reduction, and how far its figures can be trusted.

    `uncertain` lists the speedups whose interval is too wide; `drifted` says that the machine
    changed its speed, so that the times themselves mean little.
    """
    row["compared_with"] = first["name"]
    row["theoretical_speedup"] = first["effective_macs"] / row["effective_macs"]
    row["speedup_ratio"] = row["measured_speedup"] / row["theoretical_speedup"]
    row["uncertain"] = [name for name in SPEEDUPS if uncertain(row, name)]
    times = ("latency_ms", "batch_ms")
    row["drifted"] = any(row[f"{name}_p90"] > DRIFT * row[f"{name}_p10"] for name in times)


def uncertain(row: dict[str, Any], speedup: str) -> bool:
    """Whether its 95 % interval is too wide."""
    return row[f"{speedup}_high"] > BUSY * row[f"{speedup}_low"]


def remarks(row: dict[str, Any], why: list[str]) -> list[str]:
    """Where a compared row falls short of its MAC reduction, at batch 1 and at the best, and why.

    Of a machine that was busy only that is said: it explains nothing.
    """
    lines, promised = [], row["theoretical_speedup"]
    for batch, speedup in dict(zip((1, row["batch_size"]), SPEEDUPS, strict=True)).items():
        if uncertain(row, speedup):
            told = f"speedup {row[f'{speedup}_low']:.2f} to {row[f'{speedup}_high']:.2f}"
            lines.append(f"batch {batch}: the machine was busy: {told}")
        elif promised >= 1.05 and not keeps_up(row[speedup], promised):
            short = f"speedup {row[speedup]:.2f} for a MAC reduction of {promised:.2f}"
            lines.append(f"batch {batch}: {'; '.join([short, *why])}")
    return lines


def keeps_up(measured: float, promised: float) -> bool:
    """Whether a reduction is most of the promised one: three quarters, as logarithms."""
    return measured >= promised**0.75


def reasons(
    network: nn.Module, dense: nn.Module, image_size: int, device: str = "cpu"
) -> list[str]:
    """What may keep a network from being as much faster than `dense` as it has fewer MACs.

    Nothing is guessed or timed; these are counts. `device` is "cpu" or "cuda".
    """
    after, before, lines = costs(network, image_size), costs(dense, image_size), []
    if (zeros := 1 - after["nonzero_params"] / after["params"]) > 0.01:
        lines.append(f"{zeros:.0%} of its parameters are zero, and dense kernels multiply zeros")
    multiple = fast_multiple(channel_groups(spec_of(dense)))
    multiple = min(multiple, 8) if device == "cuda" else multiple  # enough for tensor cores
    widths = [w for name, w in spec_of(network)["widths"].items() if ".se.fc1" not in name]
    if odd := sum(width % multiple > 0 for width in widths):
        lines.append(f"{odd} of its {len(widths)} widths are no multiple of {multiple}")
    kept = _activations(dense, image_size) / _activations(network, image_size)
    if not keeps_up(kept, before["macs"] / after["macs"]):
        lines.append(f"the activations that its layers write shrank only {kept:.2f}x")
    return lines


def _activations(network: nn.Module, image_size: int) -> int:
    rows = layer_costs(spec_of(network), image_size)
    return sum(row.shape[0] * row.size**2 for row in rows if row.kind == "conv")


def layers_of(subject: Subject, batch: int, machine: Machine) -> list[dict[str, Any]]:
    """Every layer of a network: shape, parameters, MACs, and its time in PyTorch."""
    times = layer_times(subject.network, torch.randn(subject.shape(batch)), machine)
    rows = layer_costs(spec_of(subject.network), subject.checkpoint.image_size)
    return [
        {**row._asdict(), "shape": "x".join(map(str, row.shape)), "ms": times[row.name] * 1e3}
        for row in rows
    ]


def keep(subject: Subject, row: dict[str, Any], first: Subject, machine: Machine) -> Path | None:
    """Write a row into the run folder of a network, beside those of other engines and machines.

    The row notes the hash of its checkpoint and of the one that it was compared with; rows of a
    checkpoint that has been replaced since are dropped. Returns the file; a checkpoint outside a
    run folder gets none.
    """
    checkpoint, file = subject.checkpoint, subject.checkpoint.file.with_name("benchmark.json")
    if checkpoint.file.name != "model.pt" or not file.with_name("result.json").is_file():
        return None
    new = {**row, "sha256": checkpoint.sha256, "reference": first.checkpoint.sha256}
    new["machine"] = describe(machine)
    del new["checkpoint"]  # the folder may move
    try:
        with locked(file.parent, seconds=10):  # another benchmark is done by then
            write_json(file, [*_others(file, new), new])  # the latest is the last
        return file
    except OSError as error:
        held = isinstance(error, BlockingIOError)
        why = "another process is at work in the folder" if held else error.strerror
        say(f"{file}: not written ({why}); report.py will not know this measurement")
        return None


def _others(file: Path, new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that stay beside a new one, but for damaged ones. Raises OSError."""

    def stays(row: dict[str, Any]) -> bool:
        other = any(row[key] != new[key] for key in ("engine", "machine", "reference"))
        better = any(doubt not in doubts(row) for doubt in doubts(new))
        return row["sha256"] == new["sha256"] and (other or better)

    def doubts(row: dict[str, Any]) -> list[Any]:
        return row.get("uncertain", []) + ["drifted"] * bool(row.get("drifted"))

    if not file.exists():
        return []
    try:
        rows = list(json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError):
        rows = [None]
    sound = [row for row in rows if isinstance(row, dict) and row.keys() >= NEEDED]
    sound = [row for row in sound if isinstance(row.get("uncertain", []), list)]
    if len(sound) < len(rows):
        say(f"{file}: damaged; {len(rows) - len(sound)} of its rows are gone")
    return list(filter(stays, sound))
