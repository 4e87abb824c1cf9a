"""Narration goes to standard error; standard output belongs to the result."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from .device import rank


def say(message: str) -> None:
    """One message for the reader, from the first process only.

    What a file brought into it cannot steer a terminal: "?" stands for what is not printable.
    """
    message = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in message)
    if rank() == 0:
        with contextlib.suppress(OSError):  # a reader who went away does not end a training
            print(message, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain table: words to the left, numbers to the right."""
    columns = []
    for column in zip(head, *rows, strict=True):
        cells = [str(cell) for cell in column]
        numbers = all(cell[:1] in "0123456789-" for cell in cells[1:])
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))
