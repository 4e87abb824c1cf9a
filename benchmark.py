"""Stage 4: what does each network cost to run, on this machine?

    python benchmark.py runs/cifar100/resnet50/seed0/*
    python benchmark.py dense.pt slim.pt --engines eager compile openvino --batch-size 64 256
    python benchmark.py runs/cifar100/resnet50/seed0/* --device cuda --profile --layers
    python benchmark.py runs/synthetic/resnet20/seed*/* | jq -r '.rows[] | [.name, .top1] | @tsv'

Takes checkpoints and run folders; of a folder like l1-0.6 it takes the fine-tuned networks and
those from scratch, or else the pruned one. The first is what the others are compared with. All
networks are timed in turn, engine by engine, in one process, on random images; the logits of every
engine are compared with those of PyTorch in float32. The engine compile takes a while for each
network and batch; onnxruntime and openvino need requirements-deploy.txt. Prints tables, says what
keeps a network from being as fast as its MACs promise, and gives the same figures as one JSON line.
Each run folder keeps its rows in benchmark.json, for report.py.
"""

import utils.early  # noqa: F401

import argparse
import textwrap
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

import torch

from measurement.engines import ENGINES, FILES, IN_TORCH
from measurement.memory import peak_memory
from measurement.rows import Subject, compare, costs_of, keep, layers_of, measure, reasons, remarks
from measurement.runtimes import require
from measurement.timing import profile
from pruning.config import Options, flag, option
from utils import checkpoint as checkpoints
from utils import cli
from utils.checkpoint import Checkpoint, CheckpointError
from utils.config import RunConfig, fill
from utils.device import describe, prepare
from utils.log import say, table
from utils.run import read

# What tables show: heading -> key of a row.
SIZES = {
    "top-1 %": "top1",
    "params M": "params",
    "nonzero M": "nonzero_params",
    "MACs M": "macs",
    "thop M": "thop_macs",
    "file MB": "file_bytes",
    "compressed MB": "compressed_bytes",
}
ONE = {
    "latency ms": "latency_ms",
    "p10": "latency_ms_p10",
    "p90": "latency_ms_p90",
    "speedup": "latency_speedup",
    "MAC reduction": "theoretical_speedup",
    "logit error": "logit_difference_share",
}
BEST = {
    "batch": "batch_size",
    "batch ms": "batch_ms",
    "p10": "batch_ms_p10",
    "p90": "batch_ms_p90",
    "images/s": "images_per_second",
    "speedup": "measured_speedup",
    "peak memory MB": "peak_memory_bytes",
}
OPERATORS = {"CPU ms": "cpu_ms", "CUDA ms": "cuda_ms"}
LAYERS = {"shape": "shape", "params": "params", "MACs M": "macs", "ms": "ms"}


@dataclass(frozen=True)
class Plan(Options):
    """What to measure."""

    engines: tuple[str, ...] = option(
        IN_TORCH, "what runs them (default: eager fused)", within=tuple(ENGINES), nargs="+"
    )
    batch_size: tuple[int, ...] = option(
        (128,), "batch sizes besides 1 (default: 128); the best counts", int, "[1, 1e9]", nargs="+"
    )
    seconds: float = option(2.0, "for the slowest network, each batch size", float, "[0, 1e9]")
    profile: bool = option(False, "time and operators by torch.profiler, in eager and fused", bool)
    layers: bool = option(False, "shape, cost and time of every layer", bool)
    no_memory: bool = option(False, "skip the peak memory", bool)


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="file or run folder")
    cli.add_flags(p.add_argument_group("measurement"), Plan)
    cli.add_machine_flags(p)
    cli.add_reading_flags(p)
    return p


def main(args: argparse.Namespace) -> dict:
    plan, machine = fill(Plan, vars(args)), prepare(fill(RunConfig, vars(args)))
    for engine in sorted(FILES.keys() & plan.engines):
        require(*FILES[engine].needs)
    subjects, largest = load(args.checkpoints, vars(args)), max(plan.batch_size)
    first, shape = subjects[0], subjects[0].shape(largest)
    costs = [costs_of(subject) for subject in subjects]
    for subject in subjects:
        if subject.checkpoint.dense["widths"] != first.checkpoint.dense["widths"]:
            say(f"{subject.name} was not made from the same dense network as {first.name}")
    show("whatever runs them", costs, SIZES)
    rows, kept = [], []
    for engine in dict.fromkeys(plan.engines):
        measured = measure(subjects, engine, plan.batch_size, plan.seconds, machine)
        in_engine = [cost | times for cost, times in zip(costs, measured, strict=True)]
        for subject, row in zip(subjects, in_engine, strict=True):
            compare(row, in_engine[0])
            why = reasons(subject.network, first.network, shape[-1], machine.device.type)
            row |= {"memory_batch": largest, "remarks": remarks(row, why)}
            if not plan.no_memory:
                row["peak_memory_bytes"] = peak_memory(subject.network, shape, machine, engine)
            if plan.profile and engine in IN_TORCH:
                call = ENGINES[engine](subject.network, machine)(torch.randn(shape))
                row |= profile(call, machine.device)
            kept.append(keep(subject, row, first, machine))
        title = f"{engine}, {in_engine[0]['precision']}"
        show(f"{title}: one image", in_engine, ONE)
        best = "batch with the best throughput; peak memory of the largest batch"
        show(f"{title}: {best}", in_engine, BEST)
        for row in in_engine:
            for line in row["remarks"]:
                say(textwrap.fill(f"{row['name']}, {line}", 100, subsequent_indent="    "))
            if "operators" in row:
                operators = [*row["operators"], {**row, "name": "all operators"}]
                show(f"{title}: {row['name']}, batch {largest}", operators, OPERATORS)
        rows += in_engine
    result: dict[str, Any] = {"stage": "benchmark", "machine": describe(machine), "rows": rows}
    result["kept"] = list(dict.fromkeys(str(file) for file in kept if file))
    if plan.layers:
        result["layers"] = {s.name: layers_of(s, largest, machine) for s in subjects}
        for name, layers in result["layers"].items():
            show(f"{name}, batch {largest}, layer by layer", layers, LAYERS)
    return result


def load(paths: list[Path], given: dict[str, Any]) -> list[Subject]:
    """The networks that the paths on the command line stand for."""
    by_file = {one.file.resolve(): one for path in paths for one in resolve(path, given)}
    if not by_file:
        raise CheckpointError("none of these folders holds a checkpoint")
    useless = [name for name in cli.READING if given.get(name) is not None]
    if useless and all(checkpoint.stage != "elsewhere" for checkpoint in by_file.values()):
        raise ValueError(f"{flag(useless[0])} is for a network trained elsewhere")
    sizes = {checkpoint.image_size for checkpoint in by_file.values()}
    if len(sizes) > 1:
        told = ", ".join(f"{one.file} {one.image_size}" for one in by_file.values())
        raise ValueError(f"images of different sizes: {told} (--image-size for one from elsewhere)")
    # Names lose the folders that all of them share.
    places = [file.parent if file.name == "model.pt" else file for file in by_file]
    shared = commonpath([place.parent for place in places])
    names = [place.relative_to(shared).as_posix() for place in places]
    pairs = zip(names, by_file.values(), strict=True)
    return [Subject(name, checkpoint, checkpoint.network().eval()) for name, checkpoint in pairs]


def resolve(path: Path, given: dict[str, Any]) -> list[Checkpoint]:
    """The checkpoints that a path on the command line stands for."""
    if not path.is_dir() or (path / "model.pt").is_file():
        return [read(path, given)]
    inside = [checkpoints.load(file) for file in sorted(path.glob("*/model.pt"))]
    for stages in (("finetuned", "scratch", "like"), ("pruned",)):
        if chosen := [checkpoint for checkpoint in inside if checkpoint.stage in stages]:
            return chosen
    say(f"{path}: no run folder, and none inside; left out (files are given by name)")
    return []


def show(what: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """A table with a line for each row; columns that nothing is known of are left out."""

    def cell(head: str, value: Any) -> str:
        if head.endswith((" M", " MB")) and value is not None:
            value /= 1e6
        if isinstance(value, float):
            return f"{value:.2f}" if value >= 1 else f"{value:.3g}"
        return "-" if value is None else str(value)

    known = {h: key for h, key in columns.items() if any(row.get(key) is not None for row in rows)}
    cells = [[row["name"], *(cell(h, row.get(key)) for h, key in known.items())] for row in rows]
    say(f"\n{what}\n{table(['', *known], cells)}")


def summary(result: dict[str, Any]) -> str:
    """Which network is how much faster, and where its figures are."""
    lines = []
    for what, key in (("images/s", "measured_speedup"), ("latency", "latency_speedup")):
        if certain := [row for row in result["rows"] if key not in row["uncertain"]]:
            best = max(certain, key=lambda row: row[key])
            gain = f"speedup {best[key]:.2f} over {best['compared_with']}"
            lines.append(f"{what:10}best is {best['name']} in {best['engine']}, {gain}")
    if kept := result["kept"]:
        lines.append(f"file      {kept[0]}" + f" and {len(kept) - 1} more" * (len(kept) > 1))
    if len(kept) > 1:
        folders = [Path(file).parent for file in kept]
        lines.append(f"next      python report.py {commonpath(folders)}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_script(build_parser, main, summary)
