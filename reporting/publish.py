"""Copying what a study found, and no weights, to where it is kept."""

from __future__ import annotations

from pathlib import Path

from utils.files import write_atomically

from .collect import lineage, read


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
    told = []
    for run in finished:
        chain = [(stage.folder, stage.result["sha256"]) for stage in lineage(run, finished)]
        if other := [folder for folder, sha256 in chain if hashes.get(folder, sha256) != sha256]:
            what = f"{kept / other[0]} is of another run; delete that to replace it"
            told.append(f"{runs / run.folder}: left out, {what}")
            continue
        _copy(run.folder + "/result.json", runs, kept)
        if run.curve:
            _copy(run.folder + "/metrics.jsonl", runs, kept)
        if run.speeds:
            _copy(run.folder + "/benchmark.json", runs, kept)
    for name in sensitivities:
        _copy(name, runs, kept)
    return problems + told


def _copy(name: str, source: Path, to: Path) -> None:
    content = (source / name).read_bytes()
    write_atomically(to / name, lambda file: file.write(content))
