"""What the scripts share, as a script has it."""

import subprocess
import sys

from tests.command import ROOT

WRAPPED = """
import os, signal, time
from utils import cli

def main(args):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except BaseException as error:
        raise RuntimeError("step 1 of 3 failed") from error

cli.run_script(lambda: cli.parser("a script"), main, str)
"""


def test_an_interrupt_that_a_library_takes_for_its_own_failure_is_one():
    """As PyTorch's ONNX exporter does."""
    told = subprocess.run([sys.executable, "-c", WRAPPED], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 130
    assert told.stderr.startswith("interrupted")
