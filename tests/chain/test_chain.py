"""The commands as a user runs them, on generated images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import build, new_spec
from tests.command import ROOT, SCRIPTS, heed_interrupts, result, run, run_two
from tests.conftest import lively
from utils.files import locked
from utils.train import CHECK_EVERY

NET = ["--depth", "20", "--width", "4", "--dataset", "synthetic", "--image-size", "16"]
TRAIN = ["--epochs", "2", "--train-images", "512", "--batch-size", "64"]
KEYS = {
    *("stage", "checkpoint", "dataset", "arch", "depth", "method", "ratio", "seed"),
    *("pruning", "control"),
    *("top1", "loss", "params", "macs", "seconds"),
}


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder in which the baseline is trained; tests copy it."""
    folder = tmp_path_factory.mktemp("base")
    result(run("main.py", *NET, *TRAIN, cwd=folder))
    return folder


@pytest.fixture
def work(base, tmp_path):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_chain(work):
    first = result(run("main.py", *NET, *TRAIN, cwd=work))
    pruned = result(run("res50prune.py", *NET, "--ratio", "0.5", cwd=work))
    tuned = result(run("finetune.py", *NET, *TRAIN, "--ratio", "0.5", cwd=work))
    for stage, output in (("baseline", first), ("pruned", pruned), ("finetuned", tuned)):
        assert output.keys() >= KEYS
        assert output["stage"] == stage
    assert pruned.keys() >= {"top1_before", "max_logit_difference"}
    assert pruned["top1_before"] == first["top1"]
    assert pruned["max_logit_difference"] < 1e-4
    assert first["params"] > pruned["params"] == tuned["params"]
    assert first["macs"] > pruned["macs"] == tuned["macs"]
    assert (first["method"], tuned["method"], tuned["ratio"]) == (None, "l1", 0.5)

    folder = work / "runs/synthetic/resnet20w4/seed0"
    for name in ("baseline", "l1-0.5/pruned", "l1-0.5/finetuned"):
        stored = json.loads((folder / name / "result.json").read_text())
        assert folder / name / "model.pt" == work / stored["checkpoint"]
    log = [json.loads(line) for line in (folder / "l1-0.5/finetuned/metrics.jsonl").open()]
    assert [row["epoch"] for row in log] == [1, 2]
    assert log[-1]["top1"] == tuned["top1"]
    assert not list(folder.rglob("resume.pt"))

    checkpoint = load(folder / "l1-0.5/finetuned/model.pt")
    assert [entry["stage"] for entry in checkpoint["history"]] == [
        "baseline",
        "pruned",
        "finetuned",
    ]
    model = build(checkpoint["spec"], checkpoint["state_dict"])  # alone, it rebuilds its network
    assert sum(p.numel() for p in model.parameters()) == tuned["params"]


def test_done_is_printed_again_and_other_arguments_are_refused(work):
    stored = (work / "runs/synthetic/resnet20w4/seed0/baseline/result.json").read_text()
    again = run("main.py", *NET, *TRAIN, cwd=work)
    assert again.stdout == stored
    other = run("main.py", *NET, *TRAIN, "--lr", "0.01", cwd=work)
    assert other.returncode == 2
    assert other.stdout == ""
    assert "--lr was 0.1, is 0.01" in other.stderr
    forced = result(run("main.py", *NET, *TRAIN, "--lr", "0.01", "--force", cwd=work))
    assert forced["loss"] != json.loads(stored)["loss"]


def test_a_changed_input_is_noticed(work):
    result(run("res50prune.py", *NET, cwd=work))
    result(run("main.py", *NET, *TRAIN, "--lr", "0.01", "--force", cwd=work))
    stale = run("res50prune.py", *NET, cwd=work)
    assert stale.returncode == 2
    assert "the input checkpoint" in stale.stderr


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--depth", "56"], 2, "--depth 56 contradicts"),
        (["--dataset", "cifar10"], 2, "--dataset cifar10 contradicts"),
        (["--ratio", "1.0"], 2, "--ratio 1.0 is not in [0, 1)"),
        (["--ratio", "0.5,0.5"], 2, "3 stages"),
        (["--skip", "layer9"], 2, "no such name"),
        (["--skip", "layer1", "layer2", "layer3"], 2, "nothing to prune"),
        (["--min-keep", "inf"], 2, "--min-keep"),
        (["--seed", "1" + 400 * "0"], 2, "--seed 1"),
        (["--image-size", "1" + 400 * "0"], 2, "--image-size 1"),
        (["--device", "toaster"], 2, "--device toaster"),
        (["--mean", "0", "0", "0"], 2, "--mean"),
        (["--pattern", "2:4"], 2, "means nothing to --method l1"),
        (["--method", "weight", "--scope", "all"], 2, "means nothing to --method weight"),
        (["--method", "weight", "--criterion", "taylor"], 2, "does not fit"),
        (["--method", "weight", "--allocation", "sensitivity"], 2, "does not fit"),
        (["--method", "weight", "--ratio", "0.6,0.3,0.1"], 2, "one --ratio"),
        (["--method", "weight", "--pattern", "1:1000"], 2, "divide into blocks"),
        (["--method", "weight", "--pattern", "2:4", "--gradual"], 2, "at once"),
        (["--method", "soft", "--criterion", "taylor"], 2, "does not fit"),
        (
            [
                "--method",
                "soft",
                "--schedule",
                "he2018",
                "--threshold",
                "global",
                "--target-macs",
                "0.5",
            ],
            2,
            "--allocation layer",
        ),
        (
            ["--target-latency", "0.5", "--skip", "conv1", "layer1", "layer2", "layer3"],
            2,
            "nothing to prune",
        ),
        (["--data", "out"], 2, "where the images are"),
        (["--target-macs", "0.001"], 2, "cannot be reached"),
        (["--device", "cuda"], 2, "no CUDA device"),
        (["--ratio", "0.5", "--target-macs", "0.5"], 2, "not allowed with"),
        (["--model", "nowhere.pt"], 1, "nowhere.pt: no such checkpoint"),
        (["--model", "garbage.pt"], 1, "garbage.pt: damaged"),
    ],
)
def test_mistakes_get_one_line(base, tmp_path, flags, code, message):
    (tmp_path / "garbage.pt").write_bytes(b"PK garbage")
    model = base / "runs/synthetic/resnet20w4/seed0/baseline"
    process = run("res50prune.py", "--model", model, *flags, "--save", "out", cwd=tmp_path)
    assert process.returncode == code
    assert process.stdout == ""
    assert message in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out/model.pt").exists()


def test_a_missing_input_says_which_stage_to_run(tmp_path):
    process = run("finetune.py", *NET, cwd=tmp_path)
    assert process.returncode == 1
    assert "l1-0.3/pruned" in process.stderr
    process = run("main.py", "--dataset", "folder", "--data", "nowhere", cwd=tmp_path)
    assert process.returncode == 1
    assert "nowhere" in process.stderr.splitlines()[-1]


def start(*args, cwd, **env):
    command = [sys.executable, str(ROOT / args[0]), *map(str, args[1:])]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, **env}}
    return subprocess.Popen(command, cwd=cwd, text=True, **how)


LONG = ["--epochs", "8", "--train-images", "512", "--batch-size", "64", "--save", "out"]


def epochs_logged(folder):
    log = folder / "out/metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def kill_after_an_epoch(process, folder, signum):
    before = epochs_logged(folder)
    while process.poll() is None and epochs_logged(folder) == before:
        time.sleep(0.01)
    process.send_signal(signum)
    stdout, stderr = process.communicate()
    assert stdout == ""
    return process.returncode, stderr


def test_killed_and_resumed_has_the_same_bits(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = result(run("main.py", *NET, *LONG, cwd=tmp_path / "whole"))
    cut = tmp_path / "cut"
    cut.mkdir()
    for signum, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start("main.py", *NET, *LONG, cwd=cut)
        found, stderr = kill_after_an_epoch(process, cut, signum)
        assert found == code, stderr
        assert "Traceback" not in stderr
        assert not list((cut / "out").glob(".*tmp")) or signum == signal.SIGKILL
    resumed = run("main.py", *NET, *LONG, cwd=cut)
    assert "going on after epoch" in resumed.stderr
    assert result(resumed)["loss"] == whole["loss"]
    ours, theirs = (load(f / "out/model.pt")["state_dict"] for f in (cut, tmp_path / "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    epochs = [json.loads(line)["epoch"] for line in (cut / "out/metrics.jsonl").open()]
    assert epochs == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_unfinished_run_refuses_other_arguments(tmp_path):
    process = start("main.py", *NET, *LONG, cwd=tmp_path)
    kill_after_an_epoch(process, tmp_path, signal.SIGKILL)
    other = run("main.py", *NET, *LONG, "--seed", "3", cwd=tmp_path)
    assert other.returncode == 2
    assert "--seed was 0, is 3" in other.stderr


def test_two_processes_cannot_share_a_folder(tmp_path):
    first = start("main.py", *NET, *LONG, cwd=tmp_path)
    while not (tmp_path / "out").exists():
        time.sleep(0.01)
    second = run("main.py", *NET, *LONG, cwd=tmp_path)
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert "another process" in second.stderr


def test_several_may_ask_at_once_for_what_is_done(work):
    with locked(work / "runs/synthetic/resnet20w4/seed0/baseline"):  # as one of them does
        assert result(run("main.py", *NET, *TRAIN, cwd=work))["stage"] == "baseline"


def test_what_is_done_keeps_nothing_to_resume(work):
    left = work / "runs/synthetic/resnet20w4/seed0/baseline/resume.pt"
    left.write_bytes(b"of a process killed before it removed this")
    assert result(run("main.py", *NET, *TRAIN, cwd=work))["stage"] == "baseline"
    assert not left.exists()


def test_a_stage_that_fails_removes_no_folder_but_its_own(tmp_path):
    (tmp_path / "mine/empty").mkdir(parents=True)
    for folder in ("mine/empty", "mine/new/out"):
        nowhere = ("--dataset", "folder", "--data", "nowhere", "--save", folder)
        assert run("main.py", *nowhere, cwd=tmp_path).returncode == 1
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["mine", "empty"]


def test_divergence_is_an_error_of_one_line(tmp_path):
    process = run("main.py", *NET, *TRAIN, "--lr", "1e9", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stdout == ""
    assert "NaN or infinite" in process.stderr.splitlines()[-1]


def test_several_processes_train_together(tmp_path):
    train = ["main.py", *NET, "--epochs", "4", "--batch-size", "64", "--seed", "7"]
    process, other = run_two(*train, cwd=tmp_path)
    output = result(process)
    assert (other.returncode, other.stdout) == (0, "")
    assert output["machine"]["processes"] == 2
    assert output["top1"] > 10  # 20 classes: chance is 5
    log = tmp_path / "runs/synthetic/resnet20w4/seed7/baseline/metrics.jsonl"
    assert CHECK_EVERY < 4096 // 64  # so that the sums are shared more than once in an epoch
    for line in log.read_text().splitlines():  # a share of the 4,096 images, each counted once
        counted = json.loads(line)["train_top1"] * 40.96
        assert counted == pytest.approx(round(counted), abs=1e-6)
    again, other = run_two(*train, cwd=tmp_path)
    assert again.stdout == process.stdout
    assert (other.returncode, other.stdout) == (0, "")
    folder = tmp_path / "runs/synthetic/resnet20w4/seed7"
    assert sorted(f.name for f in (folder / "baseline").iterdir()) == [
        "metrics.jsonl",
        "model.pt",
        "result.json",
    ]
    pruned = result(run("res50prune.py", *NET, "--seed", "7", cwd=tmp_path))
    # The processes' BatchNorms saw different images; what was evaluated is what was saved.
    assert pruned["top1_before"] == output["top1"]
    tuned, other = run_two("finetune.py", *NET, *TRAIN, "--seed", "7", cwd=tmp_path)
    assert result(tuned)["stage"] == "finetuned"
    assert (other.returncode, other.stdout) == (0, "")


def test_a_network_trained_elsewhere(tmp_path):
    model = lively(new_spec(20, 20, width=8))
    state = {f"module.{k.replace('fc.', 'linear.')}": v for k, v in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "theirs.th")
    statistics = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    flags = ["--dataset", "synthetic", *statistics, "--model", "theirs.th", "--save", "slim"]
    pruned = result(run("res50prune.py", *flags, cwd=tmp_path))
    assert (pruned["depth"], pruned["arch"]) == (20, "resnet")
    assert load(tmp_path / "slim/model.pt")["data"]["mean"] == [0.5, 0.5, 0.5]
    tuned = run("finetune.py", "--refine", "slim", "--save", "tuned", *TRAIN, cwd=tmp_path)
    assert result(tuned)["params"] == pruned["params"]
    wrong = run("res50prune.py", *flags[:-1], "other", "--depth", "56", cwd=tmp_path)
    assert wrong.returncode == 2


def test_pruning_without_evaluation_is_quick(tmp_path):
    torch.save(build(new_spec(50, 20)).state_dict(), tmp_path / "dense.pt")
    flags = ["--model", "dense.pt", "--dataset", "synthetic", "--no-eval", "--save", "slim"]
    output = result(run("res50prune.py", *flags, "--target-macs", "0.5", cwd=tmp_path))
    assert output["top1"] is None
    assert output["macs"] / 1_297_850_368 == pytest.approx(0.5, abs=0.01)
    assert output["pruning"][0]["round_to"] == 16
    assert all(width % 16 == 0 for width in output["widths"].values())
    assert output["pruning_seconds"] < 10  # under 1 on an idle machine


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_complete(script, tmp_path):
    told = run(f"{script}.py", "--help", cwd=tmp_path)
    assert told.returncode == 0
    assert f"python {script}.py" in told.stdout
    assert "(default: " in told.stdout
    assert "%(default)" not in told.stdout
    assert not os.listdir(tmp_path)


def test_help_is_quick(tmp_path):
    before = os.times()
    process = start("main.py", "--help", cwd=tmp_path)
    process.communicate()
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])  # of the processor, by children
    assert process.returncode == 0
    assert seconds < 10  # 2 to 3 on an idle machine; nearly all of it is PyTorch's import


def test_the_scripts_start_without_a_warning():
    command = [sys.executable, "-W", "error", "-c", f"import {', '.join(SCRIPTS)}"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_ctrl_c_during_the_imports_leaves_no_traceback():
    command = [sys.executable, ROOT / "main.py", "--help"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=heed_interrupts
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert b"Traceback" not in errors


def test_a_process_may_be_without_a_test_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    for index, image in enumerate(pixels):
        folder = tmp_path / "images" / ("train" if index < 4 else "test") / "ant"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    data = ["--dataset", "folder", "--data", "images", "--image-size", "16"]
    flags = [*data, *NET[:4], "--epochs", "1", "--save", "out"]
    # Standalone: a port of its own, as tests run side by side.
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *torchrun, ROOT / "main.py", *flags]
    result(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True))
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["top1"] == 100  # of one class
    assert rows[0]["loss"] == pytest.approx(0, abs=1e-6)


def test_a_checkpoint_that_was_swapped_is_noticed(work):
    folder = work / "runs/synthetic/resnet20w4/seed0"
    run("res50prune.py", *NET, "--no-eval", cwd=work)
    shutil.copy(folder / "l1-0.3/pruned/model.pt", folder / "baseline/model.pt")
    told = run("main.py", *NET, *TRAIN, cwd=work)
    assert told.returncode == 1
    assert "baseline/model.pt: not the file that result.json" in told.stderr


def test_a_network_whose_result_was_lost_is_not_trained_again(work):
    folder = work / "runs/synthetic/resnet20w4/seed0/baseline"
    model, file = folder / "model.pt", folder / "result.json"
    weights, stored = model.read_bytes(), json.loads(file.read_text())
    file.unlink()
    told = run("main.py", *NET, *TRAIN, cwd=work)
    assert "epoch" not in told.stderr
    assert result(told) == json.loads(file.read_text()) == stored
    result(run("res50prune.py", *NET, "--no-eval", cwd=work))
    pruned = folder.parent / "l1-0.3/pruned"
    before, stored = (pruned / "model.pt").stat().st_mtime_ns, (pruned / "result.json").read_text()
    (pruned / "result.json").unlink()
    with locked(pruned):  # of another process, which may be replacing what is there
        busy = run("res50prune.py", *NET, "--no-eval", cwd=work)
    assert (busy.returncode, (pruned / "result.json").exists()) == (1, False)
    again = result(run("res50prune.py", *NET, "--no-eval", cwd=work))
    assert again == json.loads(stored)
    assert (pruned / "model.pt").stat().st_mtime_ns == before
    masked = ("--method", "weight", "--ratio", "0.97", "--no-eval")  # leaves idle channels
    stored = result(run("res50prune.py", *NET, *masked, cwd=work))
    (folder.parent / "weight-0.97/pruned/result.json").write_text("{")
    assert result(run("res50prune.py", *NET, *masked, cwd=work)) == stored
    assert stored["widths"] != json.loads(file.read_text())["widths"]
    file.unlink()
    other = run("main.py", *NET, *TRAIN, "--lr", "0.3", cwd=work)
    assert other.returncode == 2
    assert "--lr was" in other.stderr
    torch.save({"fc.weight": torch.ones(2)}, model)
    foreign = run("main.py", *NET, *TRAIN, cwd=work)
    assert foreign.returncode == 2
    assert "model.pt is not of this project" in foreign.stderr
    assert "fc.weight" in torch.load(model)
    model.write_bytes(weights)


def test_force_does_not_replace_what_an_input_was_made_from(work):
    run("res50prune.py", *NET, "--no-eval", cwd=work)
    baseline = "runs/synthetic/resnet20w4/seed0/baseline"
    old = (work / baseline / "model.pt").read_bytes()
    again = ["--model", "runs/synthetic/resnet20w4/seed0/l1-0.3/pruned", "--ratio", "0.2"]
    told = run("res50prune.py", *again, "--save", baseline, "--force", cwd=work)
    assert told.returncode == 2
    assert "made from" in told.stderr
    assert (work / baseline / "model.pt").read_bytes() == old


@pytest.mark.parametrize("how", [["--min-keep", "1000"], ["--round-to", "1000"]])
def test_a_pruning_that_removes_nothing_is_refused(work, how):
    told = run("res50prune.py", *NET, *how, "--no-eval", cwd=work)
    assert told.returncode == 2
    assert "nothing is removed" in told.stderr


def test_an_empty_argument_is_refused(work):
    told = run("res50prune.py", *NET, "--save", "", cwd=work)
    assert told.returncode == 2
    assert "an argument is empty" in told.stderr
    assert not (work / "model.pt").exists()
