"""What the scripts share, as a script has it."""

import os
import subprocess
import sys

import pytest

from tests.command import ROOT, heed_interrupts

SCRIPT = """
import ctypes, os, signal, time
from utils import cli

def main(args):
    {body}

cli.run_script(lambda: cli.parser("a script"), main, str)
"""
WRAPPED = """
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except BaseException as error:
        raise RuntimeError("step 1 of 3 failed") from error
"""
IN_CALLBACK = """
    class Late:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
    Late()
    time.sleep(5)
"""


def call(body, **how):
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **how)


def test_an_interrupt_that_a_library_takes_for_its_own_failure_is_one():
    """As PyTorch's ONNX exporter does."""
    told = call(WRAPPED)
    assert told.returncode == 130
    assert told.stderr.startswith("interrupted")


def test_an_interrupt_in_a_callback_that_cannot_raise_comes_again():
    """As PyTorch's compiler has them, for what nobody refers to any longer."""
    told = call(IN_CALLBACK)
    assert told.returncode == 143
    assert told.stderr.startswith("interrupted")


def test_an_interrupt_during_the_imports_is_not_lost_in_one_that_ignores_errors():
    """As PyTorch does with numpy."""
    body = (
        "import utils.early, os\ntry: os.kill(os.getpid(), 2)\nexcept BaseException: pass\nprint(1)"
    )
    command = [sys.executable, "-c", body]
    told = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=heed_interrupts
    )
    assert (told.returncode, told.stdout, told.stderr) == (-2, "", "")


def test_a_result_that_cannot_be_printed_is_an_error():
    with open("/dev/full", "w") as full:
        told = call("return {}", stdout=full)
    assert told.returncode == 1
    assert told.stderr == "-c: error: [Errno 28] No space left on device\n"


def test_of_processes_that_never_meet_one_speaks():
    """As `torchrun report.py` starts them."""
    for rank, said in (("0", 1), ("1", 0)):
        env = {**os.environ, "TORCHELASTIC_RUN_ID": "none", "RANK": rank}
        told = call("return {}", stdout=subprocess.PIPE, env=env)
        assert told.returncode == 0
        assert told.stdout.count("{}") == said


def test_what_a_library_prints_is_not_taken_for_the_result():
    noise = "ctypes.CDLL(None).printf(b'[Gloo] connected'); print('hello'); return {}"
    told = call(noise, stdout=subprocess.PIPE)
    assert (told.returncode, told.stdout) == (0, "{}\n")
    assert "[Gloo] connected" in told.stderr
    assert "hello" in told.stderr


def test_a_signal_while_python_ends_leaves_no_traceback():
    late = "import atexit; atexit.register(os.kill, os.getpid(), signal.SIGTERM); return {}"
    told = call(late)
    assert told.returncode == -15
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("error", ["MemoryError()", "RuntimeError('could not create a primitive')"])
def test_what_libraries_say_without_memory_is_told_as_such(error):
    told = call(f"raise {error}")
    assert told.returncode == 1
    assert told.stderr.startswith("-c: error: out of memory (")


def test_a_current_folder_that_was_removed_gets_one_line(tmp_path):
    command = f'rmdir "$PWD" && exec {sys.executable} {ROOT}/main.py --dataset synthetic'
    told = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 1
    assert told.stderr == "main.py: error: the current folder is gone; cd to another\n"
    assert not os.path.exists(tmp_path)
