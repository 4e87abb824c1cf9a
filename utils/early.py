"""What every script imports first.

Ctrl-C during the slow imports ends it without a traceback. And an OpenMP thread that waits for work
soon sleeps instead of spinning: on a busy machine it takes the core from what its own team waits
for (docs/speed.md).
"""

import os
import sys
from types import TracebackType


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read when PyTorch loads libgomp
