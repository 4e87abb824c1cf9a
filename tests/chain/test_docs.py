"""The documents: their commands and snippets run as they stand, and they stay short.

Bash runs the blocks of a document in order. In its PATH, `python` hands each command over to this
process, which checks the flags, adds some that make the run tiny, and runs it in a fork.
"""

import importlib
import re
import shutil
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import build, new_spec
from tests.command import ROOT, bash, link_clone, run, write_program

DOCUMENTS = ("README.md", "docs/usage.md")
MORE = ("results", "papers", "speed", "choices")
LIMITS = {"README.md": 150, "docs/results.md": 250}
TRAIN = ["--width", "2", "--train-images", "64", "--epochs", "1", "--batch-size", "32"]
TINY = {
    "main.py": TRAIN,
    "finetune.py": TRAIN,
    "res50prune.py": TRAIN[:4],
    "benchmark.py": ["--engines", "eager", "--batch-size", "2", "--seconds", "0", "--no-memory"],
}
# What stands in for programs. DRY: only the flags are checked, as the chains have tests of their
# own, one machine has few GPUs, and SLURM is not there.
SHIMS = {
    "bash": 'DRY=1 exec /bin/bash "$@"',
    "torchrun": 'shift 2; DRY=1 exec python "$@"',
    "ruff": "true",
    "jq": "cat >/dev/null",
}
# What shows that an example did something.
PROOFS = {
    "CRITERIA[": "slim, record = prune(network, criterion='largest'); assert record.ratio == 0.3",
    "METHODS[": "slim, record = prune(network, method='threshold'); assert record.state.masks",
}
NETWORK = """
from models import build, new_spec
from pruning import prune
network = build(new_spec(20, 10, width=2))
"""


def blocks(document):
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)


@pytest.fixture
def work(tmp_path):
    """A folder like a fresh clone, with images, a network from elsewhere, and the shims."""
    folder = tmp_path
    link_clone(folder)
    (folder / "docs/results").mkdir()
    for name, classes in (("data", 100), ("cifar100", 100), ("cifar10", 10)):
        write_images(folder / name, classes)
    (folder / "runs/cifar100").mkdir(parents=True)
    for name in ("resnet20", "resnet50"):  # tiny ones have other names
        (folder / "runs/cifar100" / name).symlink_to(f"{name}w2")
    for name, classes in (("resnet56.th", 10), ("resnet56.pth", 100)):
        network = build(new_spec(20, classes, width=2))  # the name is not read; 56 take longer
        torch.save(network.state_dict(), folder / name)
    Image.new("RGB", (32, 32)).save(folder / "image.png")
    for name, script in SHIMS.items():
        if name == "jq" and shutil.which(name):
            continue
        write_program(folder / "bin" / name, f"#!/bin/sh\n{script}\n")
    return folder


def write_images(folder, classes):
    random = np.random.default_rng(0)
    for index in range(2 * classes):
        file = folder / ("train", "test")[index % 2] / f"class {index // 2:02d}/0.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file)


def test_what_the_documents_show_runs(work):
    for language, block in (block for document in DOCUMENTS for block in blocks(document)):
        if language == "bash":
            in_bash(block, work)
        elif language == "python":
            proofs = [NETWORK + proof for name, proof in PROOFS.items() if name in block]
            (work / "snippet.py").write_text("\n".join([block, *proofs]))
            done = run(work / "snippet.py", cwd=work)
            assert done.returncode == 0, block + done.stderr


def in_bash(block, work):
    """Run a block, and all that it calls `python` for."""
    env = {"HOME": str(work)}
    env |= {"DRY": "1", "SLURM_ARRAY_TASK_ID": "6"} if "SLURM" in block else {}
    done = bash("-euo", "pipefail", "-c", block, cwd=work, answer=partial(answer, work), **env)
    assert done.returncode == 0, block + done.stdout + done.stderr


def answer(work, arguments, dry):
    """Check the flags of a command, and run it, unless it is a DRY one."""
    script, flags = Path(arguments[0]).name, arguments[1:]
    code, told = 0, '{"checkpoint": "runs/cifar100/resnet50/seed0/x/model.pt"}\n'
    if script != "-m":  # of test.sh
        with suppress(SystemExit):
            code = 2
            importlib.import_module(Path(script).stem).build_parser().parse_args(flags)
            code = 0
    if dry or code:
        return subprocess.CompletedProcess(arguments, code, told, "")
    flags = [flag for flag in flags if flag != "--compile"]  # which takes half a minute
    flags += TINY.get(script, [])
    flags += ["--image-size", "8"] if "synthetic" in flags else []
    return run(script, *flags, cwd=work)


def test_documents_are_short():
    for document, limit in LIMITS.items():
        assert len((ROOT / document).read_text().splitlines()) <= limit, document


@pytest.mark.parametrize("document", [*DOCUMENTS, *(f"docs/{n}.md" for n in MORE)])
def test_documents_name_files_that_exist(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    code = "".join(block for _, block in blocks(document))
    for name in re.findall(r"(?<![\w/.])[\w]+(?:\.py|\.sh|/(?=\s))", code):
        assert (ROOT / name).exists(), name
