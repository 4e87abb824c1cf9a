"""What every script imports first.

Ctrl-C during the slow imports ends it without a traceback. And an OpenMP thread that waits for work
spins 3,000 times before it sleeps, not 300,000: where another process has its core, that is time
which its own team waits for (half as fast in ResNet-20, two threads, one of two cores taken; no
difference on an idle machine).
"""

import os
import sys
from types import TracebackType


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _hook
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read when PyTorch loads libgomp
