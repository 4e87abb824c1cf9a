"""Run folders: what makes a stage resumable, repeatable and safe to call in a loop.

model.pt       the hand-over to the next stage
metrics.jsonl  one object per epoch
result.json    the line of standard output; written last, so it marks the stage as done
resume.pt      the state after the last whole epoch, while training is unfinished
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import checkpoint as checkpoints
from .checkpoint import CheckpointError
from .files import locked, sha256, write_atomically, write_text
from .machine import rank


class Run(contextlib.AbstractContextManager):
    """One stage at work in its folder, where no other process may work meanwhile.

    `result` is set if the stage is done, `state` if it was interrupted. Only the process of
    rank 0 writes.
    """

    def __init__(self, folder: Path, arguments: dict[str, Any], force: bool = False) -> None:
        """Enter `folder`. `arguments` are all that determines the outcome.

        With `force`, what the folder holds is ignored, and replaced once there is something to
        replace it. Raises ValueError if the folder was made with other arguments.
        """
        self.folder = folder
        self.arguments = plain(arguments)
        self.result: dict[str, Any] | None = None
        self.state: dict[str, Any] | None = None
        self._force = force
        self._held = contextlib.ExitStack()
        self._missing = [path for path in (folder, *folder.parents) if not path.exists()]
        with _together():
            if rank() == 0:
                self._enter()
        if dist.is_initialized():
            shared = [self.result]
            dist.broadcast_object_list(shared)  # the others follow what rank 0 found
            self.result = shared[0]
        if self.result is None and not force and self._path("resume.pt").is_file():
            self.state = checkpoints.load_file(self._path("resume.pt"), "--force starts over")
            self._compare(_arguments(self.state, self._path("resume.pt")))

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # nothing came of it: leave no empty folders
            for path in self._missing if rank() == 0 else ():
                path.rmdir()
        self._held.close()

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _enter(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--save {self.folder} is not a folder")
        if self._path("model.pt").is_dir():
            raise ValueError(f"{self._path('model.pt')} is a folder; choose another --save")
        # Who asks for what is done shuts nobody out; --force may be at work on it just now.
        with contextlib.suppress(OSError, CheckpointError):
            self.result = self._finished()
            if self.result and not self._path("resume.pt").exists():
                return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise OSError(f"--save {self.folder} cannot be written to; choose another folder")
        try:
            self._held.enter_context(locked(self.folder, wait=False))
        except BlockingIOError:
            message = "another process is at work in this folder; wait, or choose another --save"
            raise OSError(f"{self.folder}: {message}") from None
        for left_over in self.folder.glob(".*.tmp"):  # of a process killed while it wrote
            left_over.unlink()
        self.result = self._finished()
        if self.result:
            self._path("resume.pt").unlink(missing_ok=True)  # killed just before it was removed

    def _finished(self) -> dict[str, Any] | None:
        """The result of the stage, if it is done and need not be done again."""
        file, model = self._path("result.json"), self._path("model.pt")
        if self._force or not (file.is_file() and model.is_file()):
            return None
        try:
            result = json.loads(file.read_text())
        except (ValueError, RecursionError):
            raise CheckpointError(f"{file}: damaged; --force starts over") from None
        self._compare(_arguments(result, file))
        checkpoints.load_file(model, "--force starts over")
        return {**result, "checkpoint": str(model)}  # the folder may have moved

    def _compare(self, made_with: dict[str, Any]) -> None:
        names = sorted(made_with.keys() | self.arguments.keys())
        pairs = {name: (made_with.get(name), self.arguments.get(name)) for name in names}
        differing = [
            f"{_flag(name)} was {_show(old)}, is {_show(new)}"
            for name, (old, new) in pairs.items()
            if plain(old) != new
        ]
        if differing:
            raise ValueError(
                f"{self.folder} was made with other arguments: {'; '.join(differing)}. "
                "Choose another folder with --save, or start over with --force"
            )

    def _replace(self) -> None:
        """Now there is something new: what `force` ignored goes, the mark of being done first."""
        if self._force:
            for name in ("result.json", "resume.pt", "metrics.jsonl", "model.pt"):
                self._path(name).unlink(missing_ok=True)
        self._force = False

    def save_state(self, state: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Record the end of an epoch: everything needed to go on from here, and the log."""
        if rank() == 0:
            self._replace()
            state = {**state, "rows": rows, "arguments": self.arguments}
            checkpoints.require_plain(state, "state")
            write_atomically(self._path("resume.pt"), lambda file: torch.save(state, file))
            lines = [json.dumps(plain(row)) + "\n" for row in rows]
            write_text(self._path("metrics.jsonl"), "".join(lines))

    def finish(self, checkpoint: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Write the hand-over, then the result that marks the stage as done."""
        result = plain({**result, "arguments": self.arguments})
        if rank() == 0:
            self._replace()
            checkpoints.save(self._path("model.pt"), checkpoint)
            result["sha256"] = sha256(self._path("model.pt"))  # what later stages call parent
            write_text(self._path("result.json"), json.dumps(result) + "\n")
            self._path("resume.pt").unlink(missing_ok=True)
        return result


def _arguments(content: Any, file: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("arguments"), dict):
        raise CheckpointError(f"{file}: damaged; --force starts over")
    return content["arguments"]


@contextlib.contextmanager
def _together():
    """What one process raises in the block is raised by all, instead of some waiting for ever."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if dist.is_initialized():
        errors: list[Exception | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
        error = next((e for e in errors if e is not None), None)
    if error is not None:
        raise error


def plain(value: Any) -> Any:
    """The same value for JSON: paths as text, tuples as lists, None for NaN and infinities."""
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
