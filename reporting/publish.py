"""Copying what a study found, and no weights, to where it is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from .collect import differences, read


def publish(runs: Path, kept: Path) -> list[str]:
    """Copy the sound figures of all finished stages below `runs` to the same places below `kept`.

    What is kept is replaced by the same stage done again, and not by one with other settings.
    Returns what there is to tell of files that are left out, and of figures that are replaced.
    Raises FileNotFoundError if there is nothing sound.
    """
    finished, sensitivities, told = read([runs])
    there = any(kept.glob("**/result.json"))
    before = {run.folder: run for run in read([kept])[0]} if there else {}
    for run in finished:
        names = ["result.json"]
        names += ["metrics.jsonl"] if run.curve else []
        names += ["benchmark.json"] if run.speeds else []
        if old := before.get(run.folder):
            if differing := differences(old, run):
                what = f"other {', '.join(differing)} than {kept / run.folder}"
                told.append(f"{runs / run.folder}: left out, {what}; delete that to replace it")
                continue
            if old.result["sha256"] != run.result["sha256"]:
                top1 = f"{old.result.get('top1')} -> {run.result.get('top1')} %"
                told.append(f"{kept / run.folder}: replaced, top-1 {top1}")
        for name in names:
            _copy(runs / run.folder / name, kept / run.folder / name)
    for name in sensitivities:
        _copy(runs / name, kept / name)
    return told


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, to)
