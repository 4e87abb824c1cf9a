"""Stage 4: what does each network cost to run, on this machine?

    python benchmark.py runs/cifar100/resnet50/seed0/*
    python benchmark.py dense.pt slim.pt --batch-size 256 --device cuda
    python benchmark.py runs/synthetic/resnet20/seed*/* | jq -r '.rows[] | [.name, .top1] | @tsv'

Takes checkpoints and run folders; of a folder like l1-0.6 it takes the fine-tuned networks and
those from scratch, or else the pruned one. The first is what the others are compared with. All
are timed in turn, in one process, on random images. Prints a table, and the same figures as one
JSON line.
"""

import argparse
import warnings
from pathlib import Path

import torch

from models import cost_of
from utils import checkpoint as checkpoints
from utils import cli
from utils.log import say, table
from utils.machine import describe, prepare
from utils.timing import Timing, forward, interleaved, peak_memory

LAST_STAGES = ("finetuned*", "scratch", "like*")  # what stands for a folder of several stages


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("checkpoints", nargs="+", type=Path, metavar="CKPT", help="file or run folder")
    g = p.add_argument_group("measurement")
    g.add_argument(
        "--batch-size", type=cli.number(int, 1), default=128, metavar="N", help="the large batch"
    )
    g.add_argument(
        "--seconds",
        type=cli.number(float, 0),
        default=2.0,
        metavar="X",
        help="to spend on each network at each batch size, roughly",
    )
    g.add_argument("--no-memory", action="store_true", help="do not measure the peak memory")
    cli.add_machine_flags(p)
    return p


def resolve(path: Path) -> list[Path]:
    """The checkpoint files that a path on the command line stands for."""
    if path.is_dir() and not (path / "model.pt").is_file():
        found = [file for stage in LAST_STAGES for file in sorted(path.glob(f"{stage}/model.pt"))]
        if found or (found := list(path.glob("pruned/model.pt"))):
            return found
        say(f"{path}: holds no checkpoint (yet); left out")
        return []
    return [checkpoints.find(path)]


def thop_macs(model: torch.nn.Module, shape: tuple[int, ...]) -> float:
    """The count of a popular tool, for comparison: it adds normalisation and pooling."""
    with warnings.catch_warnings():  # it uses an outdated way to compare versions
        warnings.simplefilter("ignore")
        from thop import profile

        return profile(model, (torch.randn(shape),), verbose=False)[0]


def main(args: argparse.Namespace) -> dict:
    machine = prepare(args.device, args.precision, args.threads)
    files = [file for path in args.checkpoints for file in resolve(path)]
    if not files:
        raise checkpoints.CheckpointError("none of these folders holds a checkpoint")
    loaded = [checkpoints.load(file) for file in files]
    sizes = {checkpoint["data"]["image_size"] for checkpoint in loaded}
    if len(sizes) > 1:
        raise ValueError(f"the networks take images of different sizes: {sorted(sizes)}")
    size = sizes.pop()
    shapes = {"latency": (1, 3, size, size), "batch": (args.batch_size, 3, size, size)}
    models = [checkpoints.model_of(checkpoint) for checkpoint in loaded]
    timings: dict[str, list[Timing]] = {}
    for name, shape in shapes.items():
        x = torch.randn(shape)
        calls = [forward(model, x, machine) for model in models]
        say(f"timing {len(models)} networks at batch {shape[0]}")
        timings[name] = interleaved(calls, machine.device, args.seconds)

    rows = []
    for index, (file, checkpoint) in enumerate(zip(files, loaded, strict=True)):
        cost, metrics = cost_of(checkpoint["spec"], size), checkpoint["metrics"]
        one, many = timings["latency"][index], timings["batch"][index]
        memory = None
        if not args.no_memory:
            memory = peak_memory(file, shapes["batch"], machine, args.precision)
        row = {
            "name": str(file.parent if file.name == "model.pt" else file),
            # What is reported of an unfinished pruning is not of the network that is timed here.
            "top1": None if "plan" in (checkpoint["pruning"] or {}) else metrics.get("top1"),
            **cost._asdict(),
            "thop_macs": thop_macs(checkpoints.model_of(checkpoint), shapes["latency"]),
            "file_bytes": file.stat().st_size,
            "latency_ms": one.median * 1e3,
            "latency_ms_p10": one.p10 * 1e3,
            "latency_ms_p90": one.p90 * 1e3,
            "batch_ms": many.median * 1e3,
            "batch_ms_p10": many.p10 * 1e3,
            "batch_ms_p90": many.p90 * 1e3,
            "images_per_second": args.batch_size / many.median,
            "peak_memory_bytes": memory,
        }
        first = rows[0] if rows else row
        row["macs_speedup"] = first["macs"] / row["macs"]
        row["measured_speedup"] = first["batch_ms"] / row["batch_ms"]
        rows.append(row)
    say(render(rows, args.batch_size))
    return {
        "stage": "benchmark",
        "batch_size": args.batch_size,
        "machine": describe(machine),
        "rows": rows,
    }


def render(rows: list[dict], batch_size: int) -> str:
    """The table for people; names lose the folders that all of them share."""
    names = [Path(row["name"]).parts for row in rows]
    shared = 0
    while all(len(n) > shared + 1 and n[: shared + 1] == names[0][: shared + 1] for n in names):
        shared += 1
    head = (
        *("network", "top-1 %", "params M", "MACs M", "file MB", "ms at 1", "p10", "p90"),
        *(f"ms at {batch_size}", "p10", "p90", "img/s", "memory MB", "MACs x", "time x"),
    )

    def cell(value: float | None, digits: int, scale: float = 1.0) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    lines = []
    for row, parts in zip(rows, names, strict=True):
        lines.append(
            (
                "/".join(parts[shared:]),
                cell(row["top1"], 2),
                cell(row["params"], 3, 1e-6),
                cell(row["macs"], 1, 1e-6),
                cell(row["file_bytes"], 2, 1e-6),
                *(cell(row[f"latency_ms{part}"], 2) for part in ("", "_p10", "_p90")),
                *(cell(row[f"batch_ms{part}"], 1) for part in ("", "_p10", "_p90")),
                cell(row["images_per_second"], 0),
                cell(row["peak_memory_bytes"], 0, 1e-6),
                cell(row["macs_speedup"], 2),
                cell(row["measured_speedup"], 2),
            )
        )
    return table(head, lines)


if __name__ == "__main__":
    cli.run_script(build_parser, main)
