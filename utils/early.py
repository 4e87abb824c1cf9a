"""What every script imports first.

Ctrl-C during the slow imports ends it without a traceback, and a current folder that was removed
gets one line. OpenMP threads that wait for work sleep sooner instead of spinning (docs/speed.md).
"""

import os
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # As an exception it may be lost: PyTorch imports numpy from C, and ignores what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until cli.run_script has its own
try:
    os.getcwd()
except OSError:  # MKL would end the process, in its words
    sys.exit(f"{Path(sys.argv[0]).name}: error: the current folder is gone; cd to another")
# Read when PyTorch loads libgomp. An empty value counts as none.
os.environ["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT") or "3000"
# PyTorch's profiler writes when it starts and stops, and that there is no GPU.
os.environ["KINETO_LOG_LEVEL"] = os.environ.get("KINETO_LOG_LEVEL") or "99"
