"""The figures of networks in engines: one row for each pair, and where rows are kept."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models import layer_costs, spec_of
from utils import checkpoint as checkpoints
from utils import stages
from utils.checkpoint import Checkpoint
from utils.files import locked, write_text
from utils.files import sha256 as sha256_of
from utils.log import say
from utils.machine import Machine, describe
from utils.runs import plain

from .diagnosis import reasons, verdict
from .engines import ENGINES, eager, precision_of
from .timing import Timing, interleaved, layer_times


class Subject(NamedTuple):
    """A network to be measured."""

    name: str
    file: Path
    checkpoint: Checkpoint
    network: nn.Module

    @property
    def size(self) -> int:
        """Height and width of its images."""
        return self.checkpoint["data"]["image_size"]

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a batch of its images."""
        return batch, 3, self.size, self.size


class Figure(NamedTuple):
    """A figure of a row, as tables show it."""

    heading: str
    key: str
    factor: float
    digits: int

    def value(self, row: dict[str, Any]) -> float | None:
        """In the unit of the heading; None if it was not measured."""
        found = row.get(self.key)
        return None if found is None else found * self.factor


SIZES = (
    Figure("top-1 %", "top1", 1, 2),
    Figure("params M", "params", 1e-6, 3),
    Figure("nonzero M", "nonzero_params", 1e-6, 3),
    Figure("MACs M", "macs", 1e-6, 1),
    Figure("thop M", "thop_macs", 1e-6, 1),
    Figure("file MB", "file_bytes", 1e-6, 2),
    Figure("compressed MB", "compressed_bytes", 1e-6, 2),
)
TIMED = (
    Figure("ms at 1", "latency_ms", 1, 2),
    Figure("p10 at 1", "latency_ms_p10", 1, 2),
    Figure("p90 at 1", "latency_ms_p90", 1, 2),
    Figure("time x at 1", "latency_speedup", 1, 2),
    Figure("batch", "batch_size", 1, 0),
    Figure("ms", "batch_ms", 1, 1),
    Figure("p10", "batch_ms_p10", 1, 1),
    Figure("p90", "batch_ms_p90", 1, 1),
    Figure("img/s", "images_per_second", 1, 0),
    Figure("time x", "measured_speedup", 1, 2),
    Figure("MACs x", "theoretical_speedup", 1, 2),
    Figure("of MACs x", "speedup_ratio", 1, 2),
    Figure("memory MB", "peak_memory_bytes", 1e-6, 0),
    Figure("CPU ms", "cpu_ms", 1, 1),
    Figure("CUDA ms", "cuda_ms", 1, 1),
    Figure("logits ± %", "logit_difference_share", 100, 2),
)


class Measured(NamedTuple):
    """What was measured of one network in one engine: times by batch, error of the logits.

    The error is the largest difference, as it is and as a share of the largest logit.
    """

    timings: dict[int, Timing]
    difference: float
    share: float

    def rates(self) -> dict[int, float]:
        """Images per second by batch."""
        return {batch: batch / timing.median for batch, timing in self.timings.items()}


def measure(
    subjects: Sequence[Subject],
    engine: str,
    batches: Sequence[int],
    seconds: float,
    machine: Machine,
) -> dict[str, Measured]:
    """Time all networks in an engine in turn, at each batch; name -> what was measured.

    The logits are compared with those of PyTorch in float32, on the CPU, on the same images.
    """
    exact = Machine(torch.device("cpu"), torch.float32)
    prepare = ENGINES[engine].prepare
    bound = {subject.name: prepare(subject.network, machine) for subject in subjects}
    timings: dict[str, dict[int, Timing]] = {name: {} for name in bound}
    errors: dict[str, list[list[float]]] = {name: [] for name in bound}
    for batch in dict.fromkeys((1, *batches)):
        x = torch.randn(subjects[0].shape(batch))
        calls = {}
        for subject in subjects:
            if engine == "compile":
                say(f"compiling {subject.name} for batches of {batch}")
            calls[subject.name] = call = bound[subject.name](x)
            wanted = eager(subject.network, exact)(x)()
            error = (call().float().cpu() - wanted).abs().max()
            errors[subject.name].append([error.item(), (error / wanted.abs().max()).item()])
        say(f"{engine}: timing {len(subjects)} networks, batch {batch}")
        found = interleaved(list(calls.values()), machine.device, seconds)
        for name, timing in zip(calls, found, strict=True):
            timings[name][batch] = timing
    # Not max(), which loses a NaN.
    worst = {name: torch.tensor(own).amax(0).tolist() for name, own in errors.items()}
    return {name: Measured(timings[name], *worst[name]) for name in bound}


def costs_of(subject: Subject) -> dict[str, Any]:
    """What a network costs whatever runs it: accuracy, parameters, MACs, bytes."""
    checkpoint = subject.checkpoint
    unfinished = "plan" in (checkpoint["pruning"] or {})
    weights = b"".join(values.numpy().tobytes() for values in checkpoint["state_dict"].values())
    return {
        "checkpoint": str(subject.file),
        # What is reported of an unfinished pruning is not of the network that is timed here.
        "top1": None if unfinished else checkpoint["metrics"].get("top1"),
        **stages.costs(subject.network, subject.size),
        "thop_macs": thop_macs(subject),
        "file_bytes": subject.file.stat().st_size,
        # Of the weights alone: the file also has masks and history.
        "compressed_bytes": len(zlib.compress(weights)),
    }


def thop_macs(subject: Subject) -> float:
    """The count of a popular tool, for comparison: it adds normalisation and pooling."""
    with warnings.catch_warnings():  # it uses an outdated way to compare versions
        warnings.simplefilter("ignore")
        from thop import profile

        network = checkpoints.model_of(subject.checkpoint)  # it leaves buffers behind
        return profile(network, (torch.randn(subject.shape(1)),), verbose=False)[0]


def speed_of(
    engine: str,
    own: Measured,
    first: Measured,
    theoretical: float,
    machine: Machine,
) -> dict[str, Any]:
    """Times in an engine, and the speed-ups over the first network beside the `theoretical`."""
    rates = own.rates()
    best = max(rates, key=lambda batch: rates[batch])
    speedup = rates[best] / max(first.rates().values())
    one, many = own.timings[1], own.timings[best]
    return {
        "engine": engine,
        "precision": precision_of(engine, machine),
        "max_logit_difference": own.difference,
        "logit_difference_share": own.share,
        **_milliseconds("latency_ms", one),
        "latency_calls": one.calls,
        "batch_size": best,
        **_milliseconds("batch_ms", many),
        "batch_calls": many.calls,
        "images_per_second": rates[best],
        "theoretical_speedup": theoretical,
        "latency_speedup": first.timings[1].median / one.median,
        "measured_speedup": speedup,
        "speedup_ratio": speedup / theoretical,
    }


def _milliseconds(name: str, timing: Timing) -> dict[str, float]:
    parts = {"": timing.median, "_p10": timing.p10, "_p90": timing.p90}
    return {name + part: seconds * 1e3 for part, seconds in parts.items()}


def remarks(
    row: dict[str, Any], subject: Subject, first: Subject, machine: Machine, multiple: int
) -> list[str]:
    """What keeps a network from being as fast as its MACs promise, at batch 1 and at the best."""
    lines = {}
    for batch, field in ((1, "latency_speedup"), (row["batch_size"], "measured_speedup")):
        short = verdict(row["theoretical_speedup"], row[field])
        if short is None or batch in lines:
            continue
        why = reasons(
            spec_of(subject.network),
            spec_of(first.network),
            1 - row["nonzero_params"] / row["params"],
            subject.shape(batch),
            row["engine"],
            machine,
            multiple,
        )
        lines[batch] = f"batch {batch}: {short}" + (f": {'; '.join(why)}" if why else "")
    return list(lines.values())


def layers_of(subject: Subject, batch: int, machine: Machine) -> list[dict[str, Any]]:
    """Every layer of a network: shape, parameters, MACs, and its time in PyTorch."""
    times = layer_times(subject.network, torch.randn(subject.shape(batch)), machine)
    return [
        {
            "layer": row.name,
            "shape": "x".join(map(str, row.shape)),
            "params": row.params,
            "macs": row.macs,
            "ms": times[row.name] * 1e3,
        }
        for row in layer_costs(spec_of(subject.network), subject.size)
    ]


def keep(subject: Subject, row: dict[str, Any], first: Subject, machine: Machine) -> None:
    """Write a row into the run folder of a network, beside those of other engines and machines.

    The row notes the hash of its checkpoint and of the one that it was compared with; rows of a
    checkpoint that has been replaced since are dropped. A file outside a run folder gets none.
    """
    sha256, reference = _hash_of(subject), _hash_of(first)
    if sha256 is None:
        return
    new = {**row, "sha256": sha256, "reference": reference, "machine": describe(machine)}
    del new["checkpoint"]  # the folder may move

    def key(row: dict[str, Any]) -> tuple[str, str]:
        return row["engine"], json.dumps(row["machine"], sort_keys=True)

    file = subject.file.parent / "benchmark.json"
    try:
        with locked(file.parent):
            try:
                old = [row for row in json.loads(file.read_text()) if row["sha256"] == sha256]
                others = [row for row in old if key(row) != key(new)]
            except (OSError, ValueError, TypeError, KeyError):
                others = []
            write_text(file, json.dumps(plain([*others, new])) + "\n")  # the latest is the last
    except OSError as error:
        say(f"{file}: not written ({error.strerror}); report.py will not know this measurement")


def _hash_of(subject: Subject) -> str | None:
    """Of the checkpoint of a finished run; None for any other file."""
    result = subject.file.parent / "result.json"
    if subject.file.name != "model.pt" or not result.is_file():
        return None
    return sha256_of(subject.file)
