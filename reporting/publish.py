"""Copying what a study found, and no weights, to where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

from utils.files import write_atomically, write_text

from .runs import Finished, lineage, read, read_json, sound_timing, where


def publish(runs: Path, kept: Path) -> list[str]:
    """Copy the figures of all sound stages below `runs` to the same places below `kept`.

    Nothing sound is replaced but a timing by another of the same checkpoint, engine and machine:
    a stage that was done again, and what came from it, is left out. Returns a line for each that
    is. Raises FileNotFoundError if there is nothing sound.
    """
    finished, sensitivities, problems = read([runs])
    if not finished:
        raise FileNotFoundError("; ".join(problems) or f"no finished stage below {runs}")
    known = {run.folder: run for run in (read([kept])[0] if kept.exists() else [])}
    hashes = {folder: run.result["sha256"] for folder, run in known.items()}
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
        old = known.get(run.folder)
        if old is None:
            (kept / run.folder / "metrics.jsonl").unlink(missing_ok=True)  # beside a damaged result
            _copy(f"{run.folder}/result.json", runs, kept)
        if run.curve and not (old and old.curve):
            _copy(f"{run.folder}/metrics.jsonl", runs, kept)
        _keep_timings(kept / run.folder / "benchmark.json", run, here)
    for name in sensitivities:
        if (kept / name).is_file() and (kept / name).read_bytes() != (runs / name).read_bytes():
            told.append(f"{runs / name}: left out, {kept / name} is another; delete that first")
        else:
            _copy(name, runs, kept)
    return problems + told


def _keep_timings(file: Path, run: Finished, here: set[str]) -> None:
    """Those that stand there and the new ones, if all of these are against networks `here`."""
    if not run.speeds or not all(row["reference"] in here for row in run.speeds):
        return
    stand = read_json(file, list) or []
    own = [row for row in stand if sound_timing(row) and row["sha256"] == run.result["sha256"]]
    fresh = [{key: row[key] for key in row if key != "where"} for row in run.speeds]
    rows = {where(row): row for row in (*own, *fresh)}
    write_text(file, json.dumps(list(rows.values())) + "\n")


def _copy(name: str, source: Path, to: Path) -> None:
    content = (source / name).read_bytes()
    write_atomically(to / name, lambda file: file.write(content))
