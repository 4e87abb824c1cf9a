"""Run folders: what makes a stage resumable, repeatable and safe to call in a loop.

model.pt       the hand-over to the next stage
metrics.jsonl  one object per epoch
result.json    the line of standard output; written last, so it marks the stage as done
resume.pt      the state after the last whole epoch, while training is unfinished
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import checkpoint as checkpoints
from .files import write_atomically, write_text
from .machine import rank


class Run:
    """One stage at work in its folder, which no other process may enter meanwhile.

    A context manager. Only the process of rank 0 writes.
    """

    def __init__(self, folder: Path, arguments: dict[str, Any], force: bool = False) -> None:
        """Enter `folder`: `result` is set if the stage is done, `state` if it was interrupted.

        `arguments` are all that determines the outcome. Raises ValueError if the folder was
        made with others, or if another process is at work in it.
        """
        self.folder = folder
        self.arguments = arguments
        self.result: dict[str, Any] | None = None
        self.state: dict[str, Any] | None = None
        self._lock: int | None = None
        if rank() == 0:
            self._take()
            self._look(force)
        if dist.is_initialized():
            shared = [self.result]
            dist.broadcast_object_list(shared)  # the others follow what rank 0 found
            self.result = shared[0]
        if self.result is None and self._path("resume.pt").is_file():
            self.state = checkpoints.load_file(self._path("resume.pt"))
            self._compare(self.state["arguments"])

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)  # which releases it, as the end of the process does

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _take(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.folder}: another process is at work in this folder") from None

    def _look(self, force: bool) -> None:
        if force:
            for name in ("result.json", "resume.pt", "metrics.jsonl", "model.pt"):
                self._path(name).unlink(missing_ok=True)
        if self._path("result.json").is_file() and self._path("model.pt").is_file():
            try:
                self.result = json.loads(self._path("result.json").read_text())
                made_with = self.result["arguments"]
            except (ValueError, KeyError, TypeError):
                file = self._path("result.json")
                raise checkpoints.CheckpointError(f"{file}: damaged; --force starts over") from None
            self._compare(made_with)
            self._path("resume.pt").unlink(missing_ok=True)  # killed just before it was removed

    def _compare(self, made_with: dict[str, Any]) -> None:
        names = sorted(made_with.keys() | self.arguments.keys())
        differing = [
            f"{_flag(name)} was {_show(made_with.get(name))}, is {_show(self.arguments.get(name))}"
            for name in names
            if plain(made_with.get(name)) != plain(self.arguments.get(name))
        ]
        if differing:
            raise ValueError(
                f"{self.folder} was made with other arguments: {'; '.join(differing)}. "
                "Choose another folder with --save, or start over with --force"
            )

    def save_state(self, state: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Record the end of an epoch: everything needed to go on from here, and the log."""
        if rank() == 0:
            state = {**state, "rows": rows, "arguments": plain(self.arguments)}
            checkpoints.require_plain(state, "state")
            write_atomically(self._path("resume.pt"), lambda file: torch.save(state, file))
            lines = [json.dumps(plain(row)) + "\n" for row in rows]
            write_text(self._path("metrics.jsonl"), "".join(lines))

    def finish(self, checkpoint: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Write the hand-over, then the result that marks the stage as done."""
        result = plain({**result, "arguments": plain(self.arguments)})
        if rank() == 0:
            checkpoints.save(self._path("model.pt"), checkpoint)
            write_text(self._path("result.json"), json.dumps(result) + "\n")
            self._path("resume.pt").unlink(missing_ok=True)
        return result


def plain(value: Any) -> Any:
    """The same value for JSON: paths as text, and None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _flag(name: str) -> str:
    return "the input checkpoint" if name == "parent" else "--" + name.replace("_", "-")


def _show(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)
