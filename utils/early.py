"""What every script imports first.

Ctrl-C during the slow imports ends it without a traceback. And OpenMP threads that wait for work
sleep sooner instead of spinning (docs/speed.md).
"""

import os
import sys
from types import TracebackType


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook
# Read when PyTorch loads libgomp. An empty value counts as none.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT") or "3000"
