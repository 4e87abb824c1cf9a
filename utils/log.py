"""Narration goes to standard error; standard output belongs to the result."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from .device import rank


def say(message: str) -> None:
    """One message for the reader, from the first process only."""
    if rank() == 0:
        with contextlib.suppress(OSError):  # a reader who went away does not end a training
            print(message, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain table: words to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(c[:1] in "0123456789-" for c in column[1:]) for column in columns]
    lines = []
    for row in cells:
        aligned = zip(row, widths, right, strict=True)
        lines.append("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in aligned).rstrip())
    return "\n".join(lines)
