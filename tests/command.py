"""The scripts of the repository as commands, each in a process of its own."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Forks of a process that has done the imports, which take a new interpreter some seconds each.
FORKS = multiprocessing.get_context("forkserver")
SCRIPTS = ["main", "res50prune", "finetune", "benchmark", "export", "report"]
FORKS.set_forkserver_preload(["torchvision.datasets", *SCRIPTS])
# Stands in for `python` in a bash script: hands the command over to `bash` below.
SHIM = """#!/bin/sh
job=$(mktemp -d "$JOBS/XXXXXX")
printf '%s\\n' "${DRY:-}" "$@" >"$job/new" && mv "$job/new" "$job/arguments"
while [ ! -e "$job/code" ]; do kill -0 "$SERVER" && sleep 0.02 || exit 1; done
cat "$job/stdout" && cat "$job/stderr" >&2 && exit "$(cat "$job/code")"
"""


def run(script, *flags, cwd):
    """Run a script as a user does in a folder; returns the finished process."""
    (done,) = _run_all([{}], script, *flags, cwd=cwd)
    return done


def run_two(script, *flags, cwd):
    """Run a script in two processes that work together, as torchrun does; returns both."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    world["TORCHELASTIC_RUN_ID"] = "test"  # tells the ranks apart before they have met
    ranks = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return _run_all(ranks, script, *flags, cwd=cwd)


def _run_all(environments, script, *flags, cwd):
    command = [str(ROOT / script), *map(str, flags)]
    with tempfile.TemporaryDirectory() as folder:
        processes, streams = [], []
        for number, env in enumerate(environments):
            streams.append([Path(folder, f"{name}{number}") for name in ("stdout", "stderr")])
            processes.append(FORKS.Process(target=_run, args=(command, cwd, streams[-1], env)))
            processes[-1].start()
        while running := [process for process in processes if process.is_alive()]:
            wait([process.sentinel for process in running])
            if any(process.exitcode for process in processes):  # the others would wait for it
                for process in running:
                    process.terminate()
        return [
            subprocess.CompletedProcess(command, process.exitcode, *(s.read_text() for s in pair))
            for process, pair in zip(processes, streams, strict=True)
        ]


def heed_interrupts():
    """For `preexec_fn`: bash starts what stands before an & with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def result(process):
    """The one JSON object on standard output of a command that succeeded."""
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    return json.loads(line)


def link_clone(folder):
    """Make `folder` look like a fresh clone that is set up, with `SHIM` for Python."""
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "runs", "setup.sh", "data") and entry.name[0] != ".":
            (folder / entry.name).symlink_to(entry)
    (folder / "docs").mkdir()
    (folder / "setup.sh").write_text((ROOT / "setup.sh").read_text() + "setup() { :; }\n")
    write_program(folder / "bin/python", SHIM)


def write_program(file, text):
    """An executable file."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def bash(*arguments, cwd, answer, **env):
    """Run bash in a linked clone; `answer(arguments, dry)` runs what it calls `python` for."""
    command = ["/bin/bash", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PATH": f"{cwd}/bin:{os.environ['PATH']}", **env}
        env |= {"JOBS": folder, "SERVER": str(os.getpid())}
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        with streams[0].open("w") as out, streams[1].open("w") as err:
            shell = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=err)
        while shell.poll() is None:
            for asked in Path(folder).glob("*/arguments"):
                _serve(asked, answer)
            time.sleep(0.01)
        texts = [stream.read_text() for stream in streams]
    return subprocess.CompletedProcess(command, shell.returncode, *texts)


def _serve(asked, answer):
    dry, *arguments = asked.read_text().splitlines()
    asked.unlink()
    done = answer(arguments, dry)
    asked.with_name("stdout").write_text(done.stdout)
    asked.with_name("stderr").write_text(done.stderr)
    code = asked.with_name("new")  # renamed when it is whole: the shim waits for it
    code.write_text(str(done.returncode))
    code.rename(asked.with_name("code"))


def _run(command, cwd, streams, env):
    os.environ.update(env)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
