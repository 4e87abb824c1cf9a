"""Copying what a study found, and no weights, to where it is kept."""

from __future__ import annotations

from pathlib import Path

from utils.files import write_atomically

from .runs import lineage, read


def publish(runs: Path, kept: Path) -> list[str]:
    """Copy the figures of all sound stages below `runs` to the same places below `kept`.

    Nothing sound is replaced but by timings of the same checkpoint: a stage that was done again,
    and what came from it, is left out. Returns a line for each that is. Raises FileNotFoundError
    if there is nothing sound.
    """
    finished, sensitivities, problems = read([runs])
    if not finished:
        raise FileNotFoundError("; ".join(problems) or f"no finished stage below {runs}")
    hashes = {run.folder: run.result["sha256"] for run in read([kept])[0]} if kept.exists() else {}
    taken, told = [], []
    for run in finished:
        chain = [(stage.folder, stage.result["sha256"]) for stage in lineage(run, finished)]
        if other := [folder for folder, sha256 in chain if hashes.get(folder, sha256) != sha256]:
            what = f"{kept / other[0]} is of another run; to replace it, delete all that came of it"
            told.append(f"{runs / run.folder}: left out, {what}")
        else:
            taken.append(run)
    here = {*hashes.values(), *(run.result["sha256"] for run in taken)}
    for run in taken:
        timed = run.speeds and all(row["reference"] in here for row in run.speeds)
        wanted = {"result.json": True, "metrics.jsonl": run.curve, "benchmark.json": timed}
        for name in wanted:
            if wanted[name]:
                _copy(f"{run.folder}/{name}", runs, kept)
            elif run.folder not in hashes:  # of a damaged result that stood here
                (kept / run.folder / name).unlink(missing_ok=True)
    for name in sensitivities:
        if (kept / name).is_file() and (kept / name).read_bytes() != (runs / name).read_bytes():
            told.append(f"{runs / name}: left out, {kept / name} is another; delete that first")
        else:
            _copy(name, runs, kept)
    return problems + told


def _copy(name: str, source: Path, to: Path) -> None:
    content = (source / name).read_bytes()
    write_atomically(to / name, lambda file: file.write(content))
