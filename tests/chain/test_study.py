"""The bash loops, as a user runs them, and the results that this repository publishes."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.command import ROOT, result, run
from tests.reporting.conftest import study  # noqa: F401 - a fixture

# Tiny, and with nothing compiled; what a user may set to change the grid.
TINY = {
    **{"METHODS": "l1, weight", "RATIOS": "0.6", "SEEDS": "1", "EPOCHS": "1", "TUNE_EPOCHS": "1"},
    **{"TRAIN": "--train-images 256", "TUNE": "--train-images 256", "TORCH_COMPILE_DISABLE": "1"},
    "BENCH": "--engines eager --no-memory --seconds 0",
}
NET = ("--dataset", "synthetic", "--image-size", "16", "--width", "4")


@pytest.fixture
def checkout(tmp_path):
    """This repository with documents of its own."""
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "README.md", "runs", ".git"):
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def bash(*command, cwd, **env):
    environment = {**os.environ, **env}
    return subprocess.run(
        ["bash", *command], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_grid_with_its_controls_is_done_once(tmp_path):
    first = bash(ROOT / "study.sh", "thin", *NET, cwd=tmp_path, **TINY)
    assert result(first)["networks"] == 5
    assert result(first)["problems"] == []
    seed = tmp_path / "runs/synthetic/resnet20w4/seed1"
    written = {file: file.stat().st_mtime_ns for file in seed.rglob("*.json")}
    tuned = json.loads((seed / "l1-0.6/finetuned/result.json").read_text())["arguments"]
    scratch = json.loads((seed / "l1-0.6/like/result.json").read_text())["arguments"]
    assert (tuned["label_smoothing"], scratch["lr"], scratch["train_images"]) == (0, 0.2, 256)
    assert scratch["epochs"] == 2  # the pruned network had one before it was cut, and one after
    further = json.loads((seed / "finetuned/result.json").read_text())["arguments"]
    assert (further["epochs"], further["method"]) == (1, None)
    assert len([file for file in written if file.name == "benchmark.json"]) == 5
    (seed / "baseline/benchmark.json").unlink()  # is measured anew, and nothing else is done
    assert result(bash(ROOT / "study.sh", "thin", *NET, cwd=tmp_path, **TINY))["problems"] == []
    assert (seed / "baseline/benchmark.json").is_file()
    changed = [file for file, time in written.items() if file.stat().st_mtime_ns != time]
    assert {file.name for file in changed} == {"benchmark.json"}


def test_a_stage_that_fails_ends_the_loop_with_its_code_and_its_line(tmp_path):
    for name in ("main.py", "models.py", "json.py"):  # of the user, and none of ours
        (tmp_path / name).write_text("raise SystemExit(9)\n")
    told = bash(ROOT / "run.sh", "--dataset", "cifar10", "--data", "nowhere", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    assert len(told.stderr.splitlines()) == 1, told.stderr


@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        (["thin"], {"TUNE": "--lr fast"}, "invalid float value: 'fast'"),
        (["thin"], {"BENCH": "--engines warp"}, "invalid choice: 'warp'"),
        (
            ["thin"],
            {"METHODS": "l1, weight --scope all"},
            "--scope means nothing to --method weight",
        ),
        (["thin"], {"TUNE": "--ratio 0.4"}, "prunes otherwise"),
        (["thin"], {"METHODS": "l1 --seed 3"}, "--seed is for all stages"),
        (["thin"], {"CONTROLS": "yes"}, "CONTROLS 0 or 1"),
        (["thin"], {"SEEDS": " "}, "wants numbers"),
        (["thin"], {"SEEDS": "1 x"}, "wants numbers"),
        (["thin"], {"RATIOS": "0.3,0.6"}, "no commas"),
        (["thin"], {"EPOCHS": "+5"}, "want a number"),
        (["thin"], {"TRAIN": "--epochs 1"}, "set EPOCHS and TUNE_EPOCHS instead"),
        (["thin", "--epochs=2"], {}, "set EPOCHS and TUNE_EPOCHS instead"),
        (["publish", "--now"], {}, "publish takes no flags"),
        (["large", "--save", "here"], {}, "folders are fixed"),
        (["everything"], {}, "bash study.sh thin"),
    ],
)
def test_mistakes_cost_no_training(tmp_path, flags, env, message):
    told = bash(ROOT / "study.sh", *flags, cwd=tmp_path, **env)
    assert told.returncode == 2
    assert message in told.stderr
    assert not list(tmp_path.iterdir())


def test_there_may_be_nothing_to_publish(checkout):
    told = bash(checkout / "study.sh", "publish", cwd=checkout)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "study.sh: nothing to publish: runs/cifar100: no such folder\n"


def test_publishing_keeps_the_figures_and_no_weights(checkout, study):  # noqa: F811
    (study / "cifar100/resnet20/seed0/baseline/model.pt").write_bytes(b"weights")
    shutil.rmtree(checkout / "docs/results", ignore_errors=True)
    assert bash(checkout / "study.sh", "publish", cwd=checkout).returncode == 0
    (study / "cifar100/resnet20/seed0/l1-0.6/finetuned/result.json").write_text("{")  # since then
    (checkout / "docs/results/old.png").touch()
    told = result(bash(checkout / "study.sh", "publish", cwd=checkout))
    assert told["networks"] == 7
    results = checkout / "docs/results"
    assert not list(results.rglob("*.pt"))
    assert not (results / "old.png").exists()
    assert (results / "resnet20/seed0/baseline/metrics.jsonl").is_file()
    before, block, after = split((checkout / "README.md").read_text(), "results")
    assert "| cifar100 resnet20 | l1 | 1 to 2 |" in block
    assert "docs/results/accuracy-time.png" in block
    assert split((ROOT / "README.md").read_text(), "results")[::2] == [before, after]
    assert "(results/widths.png)" in split((checkout / "docs/results.md").read_text(), "report")[1]


def test_publishing_replaces_nothing_good_by_damage_or_by_a_trial(checkout, study):  # noqa: F811
    shutil.rmtree(checkout / "docs/results", ignore_errors=True)
    assert bash(checkout / "study.sh", "publish", cwd=checkout).returncode == 0
    kept = checkout / "docs/results/resnet20/seed0"
    before = {file: file.read_bytes() for file in kept.rglob("*.json*")}
    seed = study / "cifar100/resnet20/seed0"
    (seed / "l1-0.6/finetuned/result.json").write_text("{}")
    (seed / "l1-0.3/finetuned/metrics.jsonl").write_text("")
    (seed / "soft-0.6/finetuned/benchmark.json").write_text("[{")
    trial = seed / "baseline/result.json"
    trial.write_text(trial.read_text().replace('"epochs": 5', '"epochs": 1'))
    again = seed / "weight-0.6/finetuned/result.json"
    again.write_text(again.read_text().replace("70.2", "70.3").replace("hash", "new hash", 1))
    told = bash(checkout / "study.sh", "publish", cwd=checkout)
    assert result(told)
    assert "baseline: left out, other epochs than" in told.stderr
    assert "weight-0.6/finetuned: replaced, top-1 70.2 -> 70.3 %" in told.stderr
    replaced = {file for file, content in before.items() if file.read_bytes() != content}
    assert replaced == {kept / "weight-0.6/finetuned/result.json"}


def split(text, name):
    """Before, in and after a block of a Markdown file."""
    return re.split(f"^<!-- /?{name} -->$", text, flags=re.MULTILINE)


def test_the_published_results_are_rebuilt(checkout):
    """Tables and answers follow from the committed figures to the last digit, and plots to the
    last pixel if matplotlib is of the version that drew them."""
    results = checkout / "docs/results"
    plots = sorted(results.glob("*.png"))
    assert plots
    for made in (*plots, results / "report.csv"):
        made.unlink()
    published = ("--published", checkout / "docs/published.json")
    documents = (checkout / "README.md", checkout / "docs/results.md")
    result(run("report.py", results, "--save", results, *published, "--write", *documents, cwd="/"))
    for file in (*documents, results / "report.csv"):
        assert file.read_text() == (ROOT / file.relative_to(checkout)).read_text()
    assert sorted(results.glob("*.png")) == plots
    for plot in plots:
        with Image.open(plot) as new, Image.open(ROOT / plot.relative_to(checkout)) as old:
            assert new.size == old.size
            # Another version of matplotlib may put a letter elsewhere by a part of a pixel.
            same_version = new.info["Software"] == old.info["Software"]
            assert not same_version or np.array_equal(np.asarray(new), np.asarray(old))
