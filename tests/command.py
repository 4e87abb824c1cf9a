"""The scripts of the repository as commands, each in a process of its own."""

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Forks of a process that has done the imports, which take a new interpreter some seconds each.
FORKS = multiprocessing.get_context("forkserver")
SCRIPTS = ["main", "res50prune", "finetune", "benchmark", "export", "report"]
FORKS.set_forkserver_preload(["torchvision.datasets", *SCRIPTS])


def run(script, *flags, cwd):
    """Run a script as a user does in a folder; returns the finished process."""
    command = [str(ROOT / script), *map(str, flags)]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_run, args=(command, cwd, streams))
        process.start()
        process.join()
        texts = [stream.read_text() for stream in streams]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def result(process):
    """The one JSON object on standard output of a command that succeeded."""
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    return json.loads(line)


def _run(command, cwd, streams):
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
