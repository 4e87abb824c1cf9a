"""The bash loops, as a user runs them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.command import ROOT, bash, link_clone, result, run

# Tiny; what a user may set to change the grid.
TINY = {
    **{"METHODS": "l1, weight", "RATIOS": "0.6", "SEEDS": "1", "EPOCHS": "1", "TUNE_EPOCHS": "1"},
    **{"TRAIN": "--train-images 256", "TUNE": "--train-images 256"},
    "BENCH": "--engines eager --no-memory --seconds 0",
}
NET = ("--dataset", "synthetic", "--image-size", "16", "--width", "4")


def in_forks(script, *flags, cwd, **env):
    """Run a bash script of a linked clone; its Python commands are forks, and compile nothing."""

    def answer(arguments, _dry):
        given = [flag for flag in arguments[1:] if flag != "--compile"]
        return run(Path(arguments[0]).name, *given, cwd=cwd)

    if not (cwd / "bin").exists():
        link_clone(cwd)
    return bash(cwd / script, *flags, cwd=cwd, answer=answer, **env)


def as_it_is(*command, cwd, **env):
    environment = {**os.environ, **env}
    return subprocess.run(
        ["bash", *command], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_study_prunes_in_one_training_and_in_two(tmp_path):
    env = {**TINY, "RATIOS": "", "TARGETS": "0.5", "METHODS": "l1", "EPOCHS": "2"}
    told = in_forks("study.sh", "thin", *NET, cwd=tmp_path, **env)
    assert told.returncode == 0, told.stderr
    assert re.findall(r"^\[(\d/\d)\] (.+)$", told.stderr, re.MULTILINE) == [
        ("1/5", "train"),
        ("2/5", "train and prune method l1 target-macs 0.5"),
        *[("3/5", "from scratch"), ("4/5", "measure"), ("5/5", "report")],
    ]
    found = {}
    for file in tmp_path.rglob("result.json"):
        one = json.loads(file.read_text())
        epochs = one["arguments"].get("recipe", {}).get("epochs")
        found[one["stage"], one["control"], epochs] = one["widths"]
    assert set(found) == {
        *[("baseline", None, 2), ("scratch", None, 2), ("like", "scratch", 2)],
        *[("baseline", None, 1), ("pruned", None, None), ("finetuned", None, 1)],
    }
    assert found["scratch", None, 2] == found["like", "scratch", 2] != found["baseline", None, 2]


def test_the_grid_with_its_controls_is_done_once(tmp_path):
    first = in_forks("study.sh", "literal", *NET, cwd=tmp_path, **TINY)
    assert result(first)["runs"] == 7
    titles = re.findall(r"^\[(\d)/(\d)\] (.+)$", first.stderr, re.MULTILINE)
    assert [int(number) for number, _, _ in titles] == list(range(1, 10))
    assert {total for _, total, _ in titles} == {"9"}
    assert titles[4][2] == "fine-tune method weight ratio 0.6"
    seed = tmp_path / "runs/synthetic/resnet20w4/seed1"
    written = {file: file.stat().st_mtime_ns for file in seed.rglob("*.json")}
    tuned = json.loads((seed / "l1-0.6/finetuned/result.json").read_text())["arguments"]
    scratch = json.loads((seed / "l1-0.6/like/result.json").read_text())["arguments"]
    assert tuned["recipe"]["label_smoothing"] == 0
    assert (scratch["recipe"]["lr"], scratch["network"]["train_images"]) == (0.2, 256)
    assert scratch["recipe"]["epochs"] == 2  # one before the cut, and one after
    longer = json.loads((seed / "finetuned/result.json").read_text())
    assert (longer["arguments"]["recipe"]["epochs"], longer["control"]) == (1, "longer")
    assert len([file for file in written if file.name == "benchmark.json"]) == 5
    again = {**TINY, "METHODS": "l1", "CONTROLS": "0"}
    result(in_forks("study.sh", "literal", *NET, cwd=tmp_path, **again))
    changed = [file for file, time in written.items() if file.stat().st_mtime_ns != time]
    assert {file.name for file in changed} == {"benchmark.json"}


def test_the_demo_is_what_runs_where_no_dataset_is_named(tmp_path):
    env = {**TINY, "METHODS": "l1", "TRAIN": "--width 2 --train-images 64"}
    env |= {"TUNE": "--train-images 64", "EPOCHS": "1"}
    told = in_forks(
        "run.sh", "--width", "2", "--image-size", "8", "--threads", "1", cwd=tmp_path, **env
    )
    assert result(told)["runs"] == 3
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["synthetic"]


def test_a_stage_that_fails_ends_the_loop_with_its_code_and_its_line(tmp_path):
    for name in ("main.py", "models.py", "json.py", "signal.py"):  # of the user, and none of ours
        (tmp_path / name).write_text("raise SystemExit(9)\n")
    told = as_it_is(ROOT / "run.sh", "--dataset", "cifar10", "--data", "nowhere", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    title, error = told.stderr.splitlines()
    assert title == "[1/9] train"
    assert "nowhere" in error
    for part, env, told in (
        ("thin", {"EPOCHS": "20"}, "more than TUNE_EPOCHS=22"),
        ("thin", {"EPOCHS": "abc"}, "EPOCHS=abc is no number of epochs"),
        ("thin", {"TUNE_EPOCHS": "1.5"}, "TUNE_EPOCHS=1.5 is no number of epochs"),
        ("thin", {"CONTROLS": "2"}, "CONTROLS=2 is neither 0 nor 1"),
        ("publish", {}, "no runs/cifar100 here to publish"),
        ("everything", {}, "everything is no part of the study"),
        ("literal", {"EPOCHS": "0"}, "EPOCHS=0 is no number of epochs"),
        ("literal", {"CONTROLS": "yes"}, "CONTROLS=yes is neither 0 nor 1"),
        ("literal", {"TARGETS": "0.5"}, "weight leaves the MACs"),
        ("literal", {"METHODS": ", "}, "nothing to prune"),
    ):
        refused = as_it_is(ROOT / "study.sh", part, *NET, cwd=tmp_path, **env)
        assert refused.returncode == 2
        assert told in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_publishing_copies_figures_and_no_weights(tmp_path):
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "runs", ".git"):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results").mkdir()
    shutil.copytree(ROOT / "docs/results/resnet20/seed0", tmp_path / "runs/cifar100/resnet20/seed0")
    (tmp_path / "runs/cifar100/resnet20/seed0/baseline/model.pt").write_bytes(b"weights")
    assert result(as_it_is(tmp_path / "study.sh", "publish", cwd=tmp_path))["runs"] > 5
    results = tmp_path / "docs/results"
    assert (results / "resnet20/seed0/baseline/metrics.jsonl").is_file()
    assert (results / "resnet20/seed0/baseline/benchmark.json").is_file()
    assert not list(results.rglob("*.pt"))
    assert (tmp_path / "report/report.html").is_file()
