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

import argparse
import textwrap
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

import torch

from measurement.engines import ENGINES, FILES, IN_TORCH
from measurement.memory import peak_memory
from measurement.rows import Subject, costs_of, keep, layers_of, measure, remarks, speed_of
from measurement.runtimes import FORMATS, require
from measurement.timing import profile
from pruning.config import Options, option
from utils import checkpoint as checkpoints
from utils import cli
from utils.checkpoint import Checkpoint, CheckpointError
from utils.config import fill
from utils.device import describe, prepare
from utils.log import say, table

Columns = tuple[tuple[str, str, float, int], ...]  # heading, key of a row, factor, digits
SIZES: Columns = (
    ("top-1 %", "top1", 1, 2),
    ("params M", "params", 1e-6, 3),
    ("nonzero M", "nonzero_params", 1e-6, 3),
    ("MACs M", "macs", 1e-6, 1),
    ("thop M", "thop_macs", 1e-6, 1),
    ("file MB", "file_bytes", 1e-6, 2),
    ("compressed MB", "compressed_bytes", 1e-6, 2),
)
TIMES: dict[str, Columns] = {
    "one image": (
        ("latency ms", "latency_ms", 1, 2),
        ("p10", "latency_ms_p10", 1, 2),
        ("p90", "latency_ms_p90", 1, 2),
        ("speedup", "latency_speedup", 1, 2),
        ("MAC reduction", "theoretical_speedup", 1, 2),
        ("logit error %", "logit_difference_share", 100, 2),
    ),
    "batch with the best throughput": (
        ("batch", "batch_size", 1, 0),
        ("batch ms", "batch_ms", 1, 1),
        ("p10", "batch_ms_p10", 1, 1),
        ("p90", "batch_ms_p90", 1, 1),
        ("images/s", "images_per_second", 1, 0),
        ("speedup", "measured_speedup", 1, 2),
        ("speedup / MAC reduction", "speedup_ratio", 1, 2),
    ),
    "largest batch": (
        ("peak memory MB", "peak_memory_bytes", 1e-6, 0),
        ("CPU ms", "cpu_ms", 1, 1),
        ("CUDA ms", "cuda_ms", 1, 1),
    ),
}


@dataclass(frozen=True)
class Plan(Options):
    """What to measure."""

    engines: tuple[str, ...] = option(
        IN_TORCH, "what runs them (default: eager fused)", within=tuple(ENGINES), nargs="+"
    )
    batch_size: tuple[int, ...] = option(
        (128,), "batch sizes besides 1 (default: 128); the best counts", int, "[1, 1e9]", nargs="+"
    )
    seconds: float = option(2.0, "time at each batch size, of the slowest", float, "[0, 1e9]")
    profile: bool = option(False, "time and operators by torch.profiler, in eager and fused", bool)
    layers: bool = option(False, "shape, cost and time of every layer", bool)
    no_memory: bool = option(False, "without the peak memory", bool)


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="file or run folder")
    cli.add_flags(p.add_argument_group("measurement"), Plan)
    cli.add_machine_flags(p)
    return p


def main(args: argparse.Namespace) -> dict:
    plan, config = fill(Plan, vars(args)), cli.run_config(args)
    machine = prepare(config)
    engines, largest = list(dict.fromkeys(plan.engines)), max(plan.batch_size)
    for engine in engines:
        require(*(FORMATS[FILES[engine]].needs if engine in FILES else ()))
    subjects = load(args.checkpoints)
    first, shape = subjects[0], subjects[0].shape(largest)
    costs = [costs_of(subject, first) for subject in subjects]
    say(f"\n{columns(SIZES, costs)}\n")
    rows, kept = [], []
    for engine in engines:
        measured = measure(subjects, engine, plan.batch_size, plan.seconds, machine)
        say(f"{engine}: memory, and what keeps networks from being faster")
        for subject, cost, own in zip(subjects, costs, measured, strict=True):
            row = cost | speed_of(cost, engine, own, measured[0], machine)
            row["memory_batch"] = largest
            if not plan.no_memory:
                file = subject.checkpoint.file
                row["peak_memory_bytes"] = peak_memory(file, shape, machine, engine)
            if plan.profile and engine in IN_TORCH:
                call = ENGINES[engine](subject.network, machine)(torch.randn(shape))
                row |= profile(call, machine.device)
            row["remarks"] = remarks(row, subject, first, machine)
            rows.append(row)
            kept.append(keep(subject, row, first, machine))
        show(rows[-len(subjects) :])
    found: dict[str, Any] = {"stage": "benchmark", "machine": describe(machine), "rows": rows}
    found["kept"] = list(dict.fromkeys(str(file) for file in kept if file))
    if plan.layers:
        found["layers"] = {s.name: layers_of(s, largest, machine) for s in subjects}
        for name, layers in found["layers"].items():
            say(f"{name}, layer by layer\n{listing(layers)}\n")
    return found


def load(paths: list[Path]) -> list[Subject]:
    """The networks that the paths on the command line stand for."""
    found = {one.file.resolve(): one for path in paths for one in resolve(path)}
    if not found:
        raise CheckpointError("none of these folders holds a checkpoint")
    sizes = {checkpoint.image_size for checkpoint in found.values()}
    if len(sizes) > 1:
        raise ValueError(f"the networks take images of different sizes: {sorted(sizes)}")
    # Names lose the folders that all of them share.
    places = [file.parent if file.name == "model.pt" else file for file in found]
    shared = commonpath([place.parent for place in places])
    names = [place.relative_to(shared).as_posix() for place in places]
    return [Subject(*pair) for pair in zip(names, found.values(), strict=True)]


def resolve(path: Path) -> list[Checkpoint]:
    """The checkpoints that a path on the command line stands for."""
    if not path.is_dir() or (path / "model.pt").is_file():
        return [checkpoints.load(path)]
    found = [checkpoints.load(file) for file in sorted(path.glob("*/model.pt"))]
    for stages in (("finetuned", "scratch", "like"), ("pruned",)):
        if chosen := [checkpoint for checkpoint in found if checkpoint.stage in stages]:
            return chosen
    say(f"{path}: holds no checkpoint (yet); left out")
    return []


def show(rows: list[dict[str, Any]]) -> None:
    """What a person reads of an engine: times, and why they are not better."""
    engine = f"{rows[0]['engine']}, {rows[0]['precision']}"
    for what, figures in TIMES.items():
        if any(row.get(key) is not None for row in rows for _, key, _, _ in figures):
            say(f"\n{engine}: {what}\n{columns(figures, rows)}")
    say("")
    for row in rows:
        for line in row["remarks"]:
            say(textwrap.fill(f"{row['name']}, {line}", 100, subsequent_indent="    "))
    for row in rows:
        if "operators" in row:
            say(f"\n{engine}: {row['name']}\n{listing(row['operators'])}")
    say("")


def columns(figures: Columns, rows: list[dict[str, Any]]) -> str:
    """A table with a line for each row, and a column for each figure that was measured."""

    def cell(row: dict[str, Any], key: str, factor: float, digits: int) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value * factor:.{digits}f}"

    shown = [figure for figure in figures if any(row.get(figure[1]) is not None for row in rows)]
    lines = [(row["name"], *(cell(row, *figure[1:]) for figure in shown)) for row in rows]
    return table(("", *(figure[0] for figure in shown)), lines)


def listing(rows: list[dict[str, Any]]) -> str:
    """A table of all that the rows hold."""

    def cell(value: Any) -> Any:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else value

    return table(list(rows[0]), [[cell(value) for value in row.values()] for row in rows])


def summary(result: dict[str, Any]) -> str:
    """Which network is how much faster, and where its figures are."""
    lines = []
    for what, key in (("images/s", "measured_speedup"), ("latency", "latency_speedup")):
        best = max(result["rows"], key=lambda row: row[key])
        told = f"best is {best['name']} in {best['engine']}, speedup {best[key]:.2f} over"
        lines.append(f"{what:10}{told} {best['compared_with']}")
    if kept := result["kept"]:
        lines.append(f"file      {kept[0]}" + f" and {len(kept) - 1} more" * (len(kept) > 1))
        lines.append(f"next      python report.py {Path(kept[0]).parents[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_script(build_parser, main, summary)
