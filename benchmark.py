"""Stage 4: what does each network cost to run, on this machine?

    python benchmark.py runs/cifar100/resnet50/seed0/*
    python benchmark.py dense.pt slim.pt --engines eager compile openvino --batch-size 64 256
    python benchmark.py runs/cifar100/resnet50/seed0/* --device cuda --profile --layers
    python benchmark.py runs/synthetic/resnet20/seed*/* | jq -r '.rows[] | [.name, .top1] | @tsv'

Takes checkpoints and run folders; of a folder like l1-0.6 it takes the fine-tuned networks and
those from scratch, or else the pruned one. The first is what the others are compared with. All
networks are timed in turn, engine by engine, in one process, on random images; the logits of every
engine are compared with those of PyTorch in float32. Prints tables, says what keeps a network
from being as fast as its MACs promise, and gives the same figures as one JSON line. Each run
folder keeps its rows in benchmark.json, for report.py.
"""

import argparse
from os.path import commonpath
from pathlib import Path
from typing import Any

import torch

from measurement.engines import ENGINES
from measurement.memory import peak_memory
from measurement.rows import (
    SIZES,
    TIMED,
    Figure,
    Subject,
    costs_of,
    keep,
    layers_of,
    measure,
    remarks,
    speed_of,
)
from measurement.timing import profile
from models import channel_groups, spec_of
from pruning.options import hardware_multiple
from utils import checkpoint as checkpoints
from utils import cli
from utils.exports import require
from utils.log import say, table
from utils.machine import Machine, describe, prepare

LAST_STAGES = ("finetuned*", "scratch", "like*")  # what stands for a folder of several stages


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="file or run folder")
    g = p.add_argument_group("measurement")
    g.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        default=["eager", "fused"],
        help="what runs the networks; compile takes a while for each network and batch, "
        "onnxruntime and openvino want requirements-deploy.txt",
    )
    g.add_argument(
        "--batch-size",
        nargs="+",
        type=cli.number(int, 1),
        default=[128],
        metavar="N",
        help="batches, beside that of 1; the throughput is that of the best",
    )
    g.add_argument(
        "--seconds",
        type=cli.number(float, 0),
        default=2.0,
        metavar="X",
        help="to time at each batch size, for the slowest of the networks",
    )
    g.add_argument(
        "--profile",
        action="store_true",
        help="of eager and fused: time on CPU and CUDA by torch.profiler, most expensive operators",
    )
    g.add_argument("--layers", action="store_true", help="shape, cost and time of every layer")
    g.add_argument("--no-memory", action="store_true", help="do not measure the peak memory")
    cli.add_machine_flags(p)
    return p


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    for engine in args.engines:
        require(*ENGINES[engine].needs)
    subjects = load(args.checkpoints)
    first = subjects[0]
    costs = {subject.name: costs_of(subject) for subject in subjects}
    rows = []
    for engine in dict.fromkeys(args.engines):
        measured = measure(subjects, engine, args.batch_size, args.seconds, machine)
        say(f"{engine}: memory, and what keeps networks from being faster")
        for subject in subjects:
            cost, own = costs[subject.name], measured[subject.name]
            theoretical = costs[first.name]["effective_macs"] / cost["effective_macs"]
            row = {"name": subject.name, "compared_with": first.name, **cost}
            row |= speed_of(engine, own, measured[first.name], theoretical, machine)
            row |= more_of(args, subject, first, row, machine)
            keep(subject, row, first, machine)
            rows.append(row)
    found: dict[str, Any] = {"stage": "benchmark", "machine": describe(machine), "rows": rows}
    if args.layers:
        found["layers"] = {s.name: layers_of(s, max(args.batch_size), machine) for s in subjects}
    say(render(found))
    return found


def more_of(
    args: argparse.Namespace, subject: Subject, first: Subject, row: dict, machine: Machine
) -> dict[str, Any]:
    """Memory and profile, at the largest batch, and remarks for a row."""
    engine, largest = row["engine"], max(args.batch_size)
    shape, more = subject.shape(largest), {"memory_batch": largest}
    if not args.no_memory:
        more["peak_memory_bytes"] = peak_memory(
            subject.file, shape, machine, args.precision, engine
        )
    if args.profile and not ENGINES[engine].slow:
        call = ENGINES[engine].prepare(subject.network, machine)(torch.randn(shape))
        more |= profile(call, machine.device)._asdict()
    multiple = hardware_multiple(machine.device.type, channel_groups(spec_of(first.network)))
    more["remarks"] = remarks(row, subject, first, machine, multiple)
    return more


def load(paths: list[Path]) -> list[Subject]:
    """The networks that the paths on the command line stand for."""
    files = list(dict.fromkeys(file.resolve() for path in paths for file in resolve(path)))
    if not files:
        raise checkpoints.CheckpointError("none of these folders holds a checkpoint")
    loaded = [checkpoints.load(file) for file in files]
    sizes = {checkpoint["data"]["image_size"] for checkpoint in loaded}
    if len(sizes) > 1:
        raise ValueError(f"the networks take images of different sizes: {sorted(sizes)}")
    # Names lose the folders that all of them share.
    places = [file.parent if file.name == "model.pt" else file for file in files]
    shared = commonpath([place.parent for place in places])
    names = [place.relative_to(shared).as_posix() for place in places]
    return [
        Subject(name, file, content, checkpoints.model_of(content, file).eval())
        for name, file, content in zip(names, files, loaded, strict=True)
    ]


def resolve(path: Path) -> list[Path]:
    """The checkpoint files that a path on the command line stands for."""
    if path.is_dir() and not (path / "model.pt").is_file():
        found = [file for stage in LAST_STAGES for file in sorted(path.glob(f"{stage}/model.pt"))]
        if found or (found := list(path.glob("pruned/model.pt"))):
            return found
        say(f"{path}: holds no checkpoint (yet); left out")
        return []
    return [checkpoints.find(path)]


OPERATOR = (
    Figure("calls", "calls", 1, 0),
    Figure("CPU ms", "cpu_ms", 1, 2),
    Figure("CUDA ms", "cuda_ms", 1, 2),
)


def render(found: dict[str, Any]) -> str:
    """What a person reads: sizes, times in each engine, and why they are not better."""
    rows = found["rows"]
    engines = {row["engine"]: row["precision"] for row in rows}
    first = next(iter(engines))
    parts = [_table(SIZES, [row for row in rows if row["engine"] == first])]
    for engine, precision in engines.items():
        own = [row for row in rows if row["engine"] == engine]
        parts.append(f"{engine}, {precision}\n" + _table(TIMED, own))
        for row in own:
            parts[-1] += "".join(f"\n  {row['name']}, {line}" for line in row["remarks"])
        for row in own:
            if "operators" in row:
                parts.append(f"{engine} {row['name']}\n" + _table(OPERATOR, row["operators"]))
    for name, layers in found.get("layers", {}).items():
        cells = [[*list(line.values())[:-1], f"{line['ms']:.3f}"] for line in layers]
        parts.append(f"{name}, layer by layer\n" + table(list(layers[0]), cells))
    return "\n" + "\n\n".join(parts)


def _table(figures: tuple[Figure, ...], rows: list[dict[str, Any]]) -> str:
    shown = [f for f in figures if any(row.get(f.key) is not None for row in rows)]

    def cell(figure: Figure, row: dict[str, Any]) -> str:
        value = figure.value(row)
        return "-" if value is None else f"{value:.{figure.digits}f}"

    lines = [(row["name"], *(cell(figure, row) for figure in shown)) for row in rows]
    return table(("", *(figure.heading for figure in shown)), lines)


if __name__ == "__main__":
    cli.run_script(build_parser, main)
