"""The figures of networks in engines: one row for each pair, and where rows are kept."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from models import costs, layer_costs, spec_of
from utils.checkpoint import Checkpoint
from utils.device import Machine, describe
from utils.files import locked, write_text
from utils.log import say
from utils.run import plain

from .diagnosis import reasons, verdict
from .engines import ENGINES, eager, precision_of
from .runtimes import REFERENCE
from .timing import Timing, interleaved, layer_times


@dataclass(frozen=True)
class Subject:
    """A network to be measured."""

    name: str
    checkpoint: Checkpoint

    @cached_property
    def network(self) -> nn.Module:
        """Built once, on the CPU, in evaluation mode."""
        return self.checkpoint.network().eval()

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Of a batch of its images."""
        size = self.checkpoint.image_size
        return batch, 3, size, size

    @property
    def sha256(self) -> str | None:
        """Of the checkpoint of a finished run; None for any other file."""
        file = self.checkpoint.file
        finished = file.name == "model.pt" and file.with_name("result.json").is_file()
        return self.checkpoint.sha256 if finished else None


class Measured(NamedTuple):
    """What was measured of one network in one engine, at each batch.

    The errors are the largest difference of the logits, as it is and as a share of the largest.
    """

    timings: dict[int, Timing]
    errors: list[tuple[float, float]]

    def rate(self, batch: int) -> float:
        """Images per second."""
        return batch / self.timings[batch].median

    @property
    def best(self) -> int:
        """The batch with the highest rate."""
        return max(self.timings, key=self.rate)


def measure(
    subjects: Sequence[Subject],
    engine: str,
    batches: Sequence[int],
    seconds: float,
    machine: Machine,
) -> list[Measured]:
    """Time all networks in an engine in turn, at batch 1 and at each of `batches`.

    The logits are compared with those of PyTorch in float32, on the CPU, on the same images.
    """
    bound = [ENGINES[engine](subject.network, machine) for subject in subjects]
    measured = [Measured({}, []) for _ in subjects]
    for batch in dict.fromkeys((1, *batches)):
        x, calls = torch.randn(subjects[0].shape(batch)), []
        for subject, bind, own in zip(subjects, bound, measured, strict=True):
            if engine == "compile":
                say(f"compiling {subject.name} for batches of {batch}")
            calls.append(bind(x))
            wanted = eager(subject.network, REFERENCE)(x)()
            error = (calls[-1]().float().cpu() - wanted).abs().max()
            own.errors.append((error.item(), (error / wanted.abs().max()).item()))
        say(f"{engine}: timing {len(subjects)} networks, batch {batch}")
        found = interleaved(calls, machine.device, seconds)
        for own, timing in zip(measured, found, strict=True):
            own.timings[batch] = timing
    return measured


def costs_of(subject: Subject, first: Subject) -> dict[str, Any]:
    """What a network costs whatever runs it: accuracy, parameters, MACs, bytes."""
    checkpoint, size = subject.checkpoint, subject.checkpoint.image_size
    own, reference = (costs(network, size) for network in (subject.network, first.network))
    weights = b"".join(values.numpy().tobytes() for values in checkpoint.state_dict.values())
    return {
        "name": subject.name,
        "compared_with": first.name,
        "checkpoint": str(checkpoint.file),
        # What is reported of an unfinished pruning is not of the network that is timed here.
        "top1": None if checkpoint.pending else checkpoint.metrics.get("top1"),
        **own,
        "theoretical_speedup": reference["effective_macs"] / own["effective_macs"],
        "thop_macs": thop_macs(subject),
        "file_bytes": checkpoint.file.stat().st_size,
        # Of the weights alone: the file also has masks and history.
        "compressed_bytes": len(zlib.compress(weights)),
    }


def thop_macs(subject: Subject) -> float:
    """The count of a popular tool, for comparison: it adds normalization and pooling."""
    with warnings.catch_warnings():  # it uses an outdated way to compare versions
        warnings.simplefilter("ignore")
        from thop import profile

        network = subject.checkpoint.network()  # it leaves buffers behind
        return profile(network, (torch.randn(subject.shape(1)),), verbose=False)[0]


def speed_of(
    cost: dict[str, Any], engine: str, own: Measured, first: Measured, machine: Machine
) -> dict[str, Any]:
    """Times in an engine, and the speedups over the first network beside the MAC reduction."""
    best = own.best
    speedup = own.rate(best) / first.rate(first.best)
    one, many = own.timings[1], own.timings[best]
    difference, share = torch.tensor(own.errors).amax(0).tolist()  # not max(), which loses a NaN
    return {
        "engine": engine,
        "precision": precision_of(engine, machine),
        "max_logit_difference": difference,
        "logit_difference_share": share,
        **_milliseconds("latency_ms", one),
        "latency_calls": one.calls,
        "batch_size": best,
        **_milliseconds("batch_ms", many),
        "batch_calls": many.calls,
        "images_per_second": own.rate(best),
        "latency_speedup": first.timings[1].median / one.median,
        "measured_speedup": speedup,
        "speedup_ratio": speedup / cost["theoretical_speedup"],
    }


def _milliseconds(name: str, timing: Timing) -> dict[str, float]:
    parts = {"": timing.median, "_p10": timing.p10, "_p90": timing.p90}
    return {name + part: seconds * 1e3 for part, seconds in parts.items()}


def remarks(row: dict[str, Any], subject: Subject, first: Subject, machine: Machine) -> list[str]:
    """What keeps a network from being as fast as its MACs promise, at batch 1 and at the best."""
    lines = {}
    specs = spec_of(subject.network), spec_of(first.network)
    zeros = 1 - row["nonzero_params"] / row["params"]
    for batch, key in ((1, "latency_speedup"), (row["batch_size"], "measured_speedup")):
        short = verdict(row["theoretical_speedup"], row[key])
        if short and batch not in lines:
            why = reasons(*specs, zeros, subject.shape(batch), row["engine"], machine)
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
        for row in layer_costs(spec_of(subject.network), subject.checkpoint.image_size)
    ]


def keep(subject: Subject, row: dict[str, Any], first: Subject, machine: Machine) -> Path | None:
    """Write a row into the run folder of a network, beside those of other engines and machines.

    The row notes the hash of its checkpoint and of the one that it was compared with; rows of a
    checkpoint that has been replaced since are dropped. Returns the file; a checkpoint outside a
    run folder gets none.
    """
    if subject.sha256 is None:
        return None
    new = {**row, "sha256": subject.sha256, "reference": first.sha256}
    new["machine"] = describe(machine)
    del new["checkpoint"]  # the folder may move
    file = subject.checkpoint.file.with_name("benchmark.json")
    try:
        with locked(file.parent):
            rows = [*_others(file, new), new]  # the latest is the last
            write_text(file, json.dumps(plain(rows)) + "\n")
        return file
    except OSError as error:
        say(f"{file}: not written ({error.strerror}); report.py will not know this measurement")
        return None


def _others(file: Path, new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that stay beside a new one; none if the file is missing or damaged."""
    try:
        old = [row for row in json.loads(file.read_text()) if row["sha256"] == new["sha256"]]
        return [row for row in old if any(row[k] != new[k] for k in ("engine", "machine"))]
    except (OSError, ValueError, TypeError, KeyError):
        return []
