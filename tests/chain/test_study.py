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
from tests.reporting.conftest import edit, study, timing, write  # noqa: F401 - a fixture

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
    everything = f"python {ROOT}/benchmark.py {seed}/* --engines eager --no-memory --seconds 0"
    assert len(result(bash("-c", everything, cwd=tmp_path))["rows"]) == 5


def test_a_stage_that_fails_ends_the_loop_with_its_code_and_its_line(tmp_path):
    for name in ("main.py", "models.py", "json.py", "signal.py"):  # of the user, and none of ours
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


def test_a_missing_engine_costs_no_training(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("import not_there\n")
    bench = {"BENCH": "--engines eager onnxruntime", "PYTHONPATH": tmp_path}
    told = bash(ROOT / "run.sh", cwd=tmp_path, **bench)
    assert told.returncode == 1
    wanted = "not_there is not installed; pip install -r requirements-deploy.txt"
    assert told.stderr == f"run.sh: error: {wanted}\n"
    assert not (tmp_path / "runs").exists()


def test_there_may_be_nothing_to_publish(checkout):
    elsewhere = checkout / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pathlib.py").write_text("raise SystemExit(9)\n")  # of the user, not ours
    told = bash(checkout / "study.sh", "publish", cwd=elsewhere)
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


def test_publishing_replaces_nothing(checkout, study):  # noqa: F811
    shutil.rmtree(checkout / "docs/results", ignore_errors=True)
    assert bash(checkout / "study.sh", "publish", cwd=checkout).returncode == 0
    kept = checkout / "docs/results/resnet20/seed0"
    before = {file: file.read_bytes() for file in kept.rglob("*.json*")}
    seed = study / "cifar100/resnet20/seed0"
    (seed / "l1-0.6/finetuned/result.json").write_text("{}")
    log = seed / "l1-0.3/finetuned/metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    edit(seed / "l1-0.3/finetuned", lambda r: r.update(top1=164.5))
    edit(seed / "l1-0.6/pruned", lambda r: r.update(effective_macs=1))  # sound, and another
    speeds = seed.parent / "seed1/l1-0.6/finetuned/benchmark.json"
    (row,) = json.loads(speeds.read_text())
    later = {**row, "engine": "compile"}
    speeds.write_text(json.dumps([later, 5, {**row, "engine": "eager", "latency_ms": "x"}]))
    (seed / "soft-0.6/finetuned/benchmark.json").write_text("[{")
    for name in ("baseline", "weight-0.6/pruned", "weight-0.6/finetuned"):  # done again
        file = seed / name / "result.json"
        file.write_text(file.read_text().replace("hash of", "other hash of"))
    write(seed / "soft-0.9/pruned", "pruned", "soft-0.9", parent="other hash of baseline None 0")
    write(seed / "soft-0.3/pruned", "pruned", "soft-0.3", parent="hash of l1-0.6 pruned 0")
    heat = seed / "sensitivity/l1-inner-abc.json"
    heat.write_text(heat.read_text().replace("2.0", "1.0"))
    file = seed / "l1-0.6/like/result.json"
    speeds = [timing(reference="other hash of baseline None 0")]
    speeds[0]["sha256"] = json.loads(file.read_text())["sha256"]
    file.with_name("benchmark.json").write_text(json.dumps(speeds))
    told = bash(checkout / "study.sh", "publish", cwd=checkout)
    assert result(told)
    assert "l1-inner-abc.json: left out" in told.stderr
    assert not (kept / "l1-0.6/like/benchmark.json").exists()  # beside a network that is not kept
    for name in ("baseline", "weight-0.6/pruned", "weight-0.6/finetuned", "soft-0.9/pruned"):
        assert f"seed0/{name}: left out" in told.stderr
    assert "l1-0.6/finetuned/result.json: damaged" in told.stderr
    assert [f for f, content in before.items() if f.read_bytes() != content] == []
    merged = json.loads((kept.parent / "seed1/l1-0.6/finetuned/benchmark.json").read_text())
    assert merged == [row, later]
    assert not (kept / "soft-0.9").exists()
    assert (kept / "soft-0.3/pruned/result.json").is_file()


def test_publishing_loses_no_timings(checkout, study):  # noqa: F811
    """Though the dense network that they were measured against is damaged where it is kept."""
    shutil.rmtree(checkout / "docs/results", ignore_errors=True)
    assert bash(checkout / "study.sh", "publish", cwd=checkout).returncode == 0
    kept = checkout / "docs/results/resnet20"
    before = {file: json.loads(file.read_text()) for file in kept.rglob("benchmark.json")}
    assert before
    tuned = "seed0/l1-0.6/finetuned/benchmark.json"
    (row,) = before[kept / tuned]
    for file in (study / "cifar100").rglob("benchmark.json"):
        file.unlink()
    (study / "cifar100/resnet20" / tuned).write_text(json.dumps([{**row, "engine": "compile"}]))
    before[kept / tuned].append({**row, "engine": "compile"})
    (kept / "seed0/baseline/result.json").write_text("")
    assert bash(checkout / "study.sh", "publish", cwd=checkout).returncode == 0
    assert {file: json.loads(file.read_text()) for file in kept.rglob("benchmark.json")} == before
    (kept / tuned).write_text("3")  # no list: what is measured now takes its place
    assert bash(checkout / "study.sh", "publish", cwd=checkout).returncode == 0
    assert json.loads((kept / tuned).read_text()) == [{**row, "engine": "compile"}]
    (kept / "seed9").touch()
    write(study / "cifar100/resnet20/seed9/baseline", "baseline", seed=9)
    told = bash(checkout / "study.sh", "publish", cwd=checkout)
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1
    assert "study.sh: cannot publish" in told.stderr
    assert "seed9" in told.stderr


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
