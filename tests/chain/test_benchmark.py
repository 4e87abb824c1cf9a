"""benchmark.py and report.py at the end of a chain, as a user runs them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import benchmark
from tests.command import ROOT, result, run
from utils.checkpoint import CheckpointError

pytestmark = pytest.mark.xdist_group("benchmark")  # one worker: the fixture takes seconds
NET = ["--depth", "20", "--width", "4", "--dataset", "synthetic", "--image-size", "16"]
TRAIN = ["--epochs", "1", "--train-images", "256", "--batch-size", "64"]
QUICK = ["--seconds", "0.01", "--batch-size", "8", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dense network, a slim one that was fine-tuned, and a masked one that was not."""
    work = tmp_path_factory.mktemp("runs")
    result(run("main.py", *NET, *TRAIN, cwd=work))
    for flags in (["--ratio", "0.5"], ["--method", "weight", "--ratio", "0.9"]):
        result(run("res50prune.py", *NET, *flags, cwd=work))
    result(run("finetune.py", *NET, *TRAIN, "--ratio", "0.5", cwd=work))
    return work


@pytest.fixture
def seed(runs, tmp_path):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs/synthetic/resnet20w4/seed0"


def test_rows_and_tables(seed, tmp_path):
    told = run("benchmark.py", *sorted(seed.iterdir()), *QUICK, cwd=tmp_path)
    rows = result(told)["rows"]
    assert [(row["name"], row["engine"]) for row in rows] == [
        (name, engine)
        for engine in ("eager", "fused")
        for name in ("baseline", "l1-0.5/finetuned", "weight-0.9/pruned")
    ]
    dense, slim, masked = rows[:3]
    assert dense["theoretical_speedup"] == dense["measured_speedup"] == 1
    stored = json.loads((seed / "l1-0.5/finetuned/result.json").read_text())
    assert slim["theoretical_speedup"] == dense["macs"] / stored["macs"]
    assert slim["top1"] == stored["top1"]
    assert masked["params"] == dense["params"]
    assert masked["nonzero_params"] < 0.2 * dense["params"]
    assert masked["compressed_bytes"] < 0.6 * dense["compressed_bytes"]
    for row in rows:
        assert row["speedup_ratio"] == row["measured_speedup"] / row["theoretical_speedup"]
        assert row["thop_macs"] > row["macs"]
        assert row["peak_memory_bytes"] > 0
        assert 0 < row["latency_ms_p10"] <= row["latency_ms"] <= row["latency_ms_p90"]
        assert row["batch_size"] in (1, 4, 8)
        rate = row["batch_size"] / row["batch_ms"] * 1e3
        assert row["images_per_second"] == pytest.approx(rate)
        assert row["logit_difference_share"] < 0.1
    assert len(masked["remarks"]) <= 2  # at batch 1 and at the best; a busy machine may hide one
    words = " ".join(told.stderr.split())
    for line in masked["remarks"]:  # the tests may keep the machine busy
        assert "dense kernels multiply zeros" in line or "the machine was busy" in line
        assert line in words
    printed = told.stderr.splitlines()
    assert max(map(len, printed)) <= 100
    for heading in ("latency ms", "MAC reduction", "images/s", "logit error", "peak memory MB"):
        assert sum(heading in line for line in printed) >= 2, heading


def test_profile_and_layers(seed, tmp_path):
    flags = [*QUICK, "--engines", "eager", "--no-memory", "--profile", "--layers"]
    told = run("benchmark.py", seed / "baseline", *flags, cwd=tmp_path)
    found = result(told)
    (row,) = found["rows"]
    assert row["cpu_ms"] > 0
    assert row["cuda_ms"] is None
    assert "peak_memory_bytes" not in row
    assert row["operators"][0]["cpu_ms"] >= row["operators"][-1]["cpu_ms"] > 0
    layers = found["layers"]["baseline"]
    assert sum(layer["macs"] for layer in layers) == row["macs"]
    assert sum(layer["params"] for layer in layers) == row["params"]
    assert "layer1.0.conv1" in told.stderr
    assert row["operators"][0]["name"] in told.stderr
    assert "profiler_" not in told.stderr  # PyTorch's own words about itself


def test_run_folders_keep_their_rows(seed, tmp_path):
    once = [*QUICK, "--no-memory", "--engines"]
    result(run("benchmark.py", seed / "baseline", *once, "eager", cwd=tmp_path))
    result(run("benchmark.py", seed / "baseline", *once, "fused", cwd=tmp_path))
    result(run("benchmark.py", seed / "baseline", *once, "eager", cwd=tmp_path))
    kept = json.loads((seed / "baseline/benchmark.json").read_text())
    *older, latest = kept
    assert latest["engine"] == "eager"
    assert older[-1]["engine"] == "fused"  # beside it, a time that was more certain may stay
    doubtful = latest["uncertain"] or latest["drifted"]
    assert all(row["engine"] == "eager" and doubtful for row in older[:-1])
    assert all(row["machine"]["device"] == "cpu" for row in kept)
    result(run("main.py", *NET, *TRAIN, "--force", "--lr", "0.01", cwd=tmp_path))
    result(run("benchmark.py", seed / "baseline", *once, "eager", cwd=tmp_path))
    kept = json.loads((seed / "baseline/benchmark.json").read_text())
    assert [row["engine"] for row in kept] == ["eager"]  # the other one was of another network
    again = run("main.py", *NET, *TRAIN, "--lr", "0.01", cwd=tmp_path)
    assert result(again)["stage"] == "baseline"  # a benchmark does not spoil a run folder


def test_a_folder_stands_for_its_last_stages(seed, tmp_path):
    """As the checkpoints tell it, whatever their folders are called."""
    found = benchmark.load([seed / "baseline", seed / "l1-0.5", seed / "weight-0.9"], {})
    assert [subject.name for subject in found] == [
        *("baseline", "l1-0.5/finetuned", "weight-0.9/pruned")
    ]
    (seed / "l1-0.5/finetuned").rename(seed / "l1-0.5/b")
    (seed / "l1-0.5/pruned").rename(seed / "l1-0.5/a")
    assert [subject.name for subject in benchmark.load([seed / "l1-0.5"], {})] == ["b"]
    with pytest.raises(CheckpointError, match="none of these"):
        benchmark.load([seed], {})


def test_summary(seed, tmp_path):
    flags = [*QUICK, "--no-memory", "--engines", "eager"]
    found = result(run("benchmark.py", *sorted(seed.iterdir()), *flags, cwd=tmp_path))
    assert len(found["kept"]) == 3
    for row in found["rows"]:
        row["uncertain"] = []
    slower, fastest = sorted(found["rows"], key=lambda row: row["measured_speedup"])[-2:]
    told = benchmark.summary(found)
    assert f"{fastest['name']} in eager, speedup {fastest['measured_speedup']:.2f}" in told
    assert f"{found['kept'][0]} and 2 more" in told
    assert told.splitlines()[3:] == [f"next      python report.py {seed}"]
    fastest["uncertain"] = ["measured_speedup"]  # a busy machine may have made it the fastest
    told = benchmark.summary(found)
    assert f"{slower['name']} in eager, speedup {slower['measured_speedup']:.2f}" in told
    alone = benchmark.summary({**found, "kept": ["benchmark.json"]})
    assert alone.splitlines()[-1] == "file      benchmark.json"


def test_a_file_outside_a_run_folder(seed, tmp_path):
    shutil.copy(seed / "baseline/model.pt", tmp_path / "mine.pt")
    found = result(run("benchmark.py", "mine.pt", *QUICK, "--no-memory", cwd=tmp_path))
    assert found["kept"] == []
    assert not (tmp_path / "benchmark.json").exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--engines", "tensorrt"], 2, "invalid choice"),
        (["--batch-size", "0"], 2, "--batch-size 0 is not in [1, 1e9]"),
        (["nowhere.pt"], 1, "nowhere.pt: no such checkpoint"),
    ],
)
def test_errors(seed, tmp_path, flags, code, message):
    told = run("benchmark.py", seed / "baseline", *flags, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (code, "")
    assert message in told.stderr


def test_the_chain_ends_in_a_report(seed, tmp_path):
    result(run("benchmark.py", *sorted(seed.iterdir()), *QUICK, "--no-memory", cwd=tmp_path))
    told = result(run("report.py", "runs", cwd=tmp_path))
    assert (told["networks"], told["runs"]) == (1, 4)
    page = (tmp_path / "runs/report/report.html").read_text()
    assert "synthetic resnet20w4" in page
    assert "seed0/l1-0.5/finetuned" in page
    assert "weight not fine-tuned" in page  # it was timed


def test_memory_is_measured_in_any_surroundings(tmp_path):
    """Nothing of the current folder is run, and paths may be longer than that of a socket."""
    (tmp_path / "threading.py").write_text("open('executed', 'w')")
    (tmp_path / ("long" * 30)).mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / ("long" * 30))}
    command = [sys.executable, ROOT / "benchmark.py", ROOT / "weights/resnet20-half.pt"]
    flags = ["--engines", "eager", "--seconds", "0", "--batch-size", "2"]
    how = {"env": env, "capture_output": True, "check": True}
    done = subprocess.run([*command, *flags], cwd=tmp_path, **how)
    assert json.loads(done.stdout)["rows"][0]["peak_memory_bytes"] > 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        (["trian"], {}, "trian: neither train nor a flag of main.py"),
        ([], {"ROUND_TO": "x"}, "ROUND_TO=x is no number from 1 on"),
        (["--depth", "20"], {"BENCH": "--engins eager"}, "unrecognized arguments: --engins"),
        (["--depth", "20"], {"BENCH": "--batch-size 0"}, "--batch-size 0 is not in [1, 1e9]"),
    ],
)
def test_speed_sh_tells_what_is_wrong_before_it_works(tmp_path, flags, variables, message):
    command, env = ["bash", ROOT / "speed.sh", *flags], {**os.environ, **variables}
    told = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert message in told.stderr
    assert not list(tmp_path.iterdir())
