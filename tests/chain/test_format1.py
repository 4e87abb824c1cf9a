"""Run folders that the version before wrote: still done, still resumed, still readable."""

import json
import shutil

import pytest

from tests.command import ROOT, result, run
from utils import checkpoint as checkpoints
from utils.cli import stage_summary

HOME = "runs/synthetic/resnet20w1-B/seed0"
NET = ["--depth", "20", "--width", "1", "--shortcut", "B", "--dataset", "synthetic"]
NET += ["--image-size", "8", "--threads", "1"]
TRAIN = ["--epochs", "3", "--train-images", "128", "--batch-size", "64"]
DONE = {
    "baseline": ["main.py", *NET, *TRAIN],
    "l1-0/pruned": ["res50prune.py", *NET, "--ratio", "0"],
    "l1-0/finetuned": ["finetune.py", *NET, *TRAIN, "--ratio", "0"],
    "l1-0/like": ["main.py", "--like", f"{HOME}/l1-0/finetuned", "--threads", "1"],
}


@pytest.fixture
def work(tmp_path):
    shutil.copytree(ROOT / "tests/format1/runs", tmp_path / "runs")
    return tmp_path


@pytest.mark.parametrize("name", DONE)
def test_what_is_done_is_printed_again_in_the_new_words(work, name):
    file = work / HOME / name / "result.json"
    old = json.loads(file.read_text())
    output = result(run(*DONE[name], cwd=work))
    figures = ("top1", "loss", "params", "macs", "sha256", "seconds", "checkpoint")
    assert {key: output[key] for key in figures} == {key: old[key] for key in figures}
    pruned = name.startswith("l1-0")
    assert [(step["method"], step["ratio"]) for step in output["pruning"]] == [("l1", 0)] * pruned
    assert output["control"] == ("scratch" if name.endswith("like") else None)
    assert "tag" not in output
    assert output["dense_macs"] >= output["macs"]
    assert stage_summary(output).splitlines()[-1].startswith("next ")
    assert json.loads(file.read_text()) == output  # brought up to date


@pytest.mark.parametrize("name", DONE)
def test_other_arguments_are_still_refused(work, name):
    other = ["--no-eval"] if name.endswith("pruned") else ["--lr", "0.5"]
    refused = run(*DONE[name], *other, cwd=work)
    assert refused.returncode == 2
    assert "was made with other arguments" in refused.stderr


@pytest.mark.parametrize("how", [["soft"], ["weight", "--gradual"]])
def test_an_unfinished_pruning_goes_on(work, how):
    folder = work / HOME / "-".join([how[0], "0.5", *(["gradual"] if how[1:] else [])])
    flags = [*TRAIN, "--refine", folder / "pruned", "--save", folder / "finetuned"]
    (before,) = (folder / "finetuned/metrics.jsonl").read_text().splitlines()
    process = run("finetune.py", *flags, cwd=work)
    assert "going on after epoch 1" in process.stderr
    output = result(process)
    lines = (folder / "finetuned/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["loss"] == json.loads(before)["loss"]
    if how[0] == "weight":
        assert output["nonzero_params"] < 0.75 * output["dense_params"]
    else:
        rows = [json.loads(line) for line in lines]
        assert output["params"] < output["dense_params"]
        assert rows[1]["flipped"] < rows[0]["flipped"]  # against the choice of the first epoch
        assert rows[-1]["overlap"] == 1


def test_a_checkpoint_tells_its_pruning(work):
    checkpoint = checkpoints.load(work / HOME / "weight-0.5-gradual/pruned")
    (step,) = checkpoint.steps
    assert (step.method, step.ratio, step.gradual, step.criterion) == (
        *("weight", 0.5, True, "magnitude"),
    )
    assert checkpoint.pending
    assert checkpoint.network()
    assert [entry["arguments"]["network"]["depth"] for entry in checkpoint.history] == [20, 20]
    soft = checkpoints.load(work / HOME / "soft-0.5/pruned")
    assert "layer1.residual" not in soft.steps[0].skip
    assert all(".stream" not in name for name in soft.pruning.state.kept)
