"""What a GPU alone can show; skipped without one."""

import json

import pytest
import torch

from measurement.engines import ENGINES
from measurement.timing import profile
from models import new_spec
from tests.command import result, run
from tests.conftest import lively
from utils.device import Machine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or no TEST_CUDA=1")
CUDA = Machine(torch.device("cuda"), torch.float32)
NET = ["--depth", "20", "--width", "8", "--dataset", "synthetic", "--compile", "--epochs", "4"]


@pytest.mark.parametrize("engine", ["eager", "fused", "compile"])
def test_engines(engine):
    network = lively(new_spec(20, 10, width=8))
    x = torch.randn(3, 3, 16, 16)
    call = ENGINES[engine](network, CUDA)(x)
    torch.testing.assert_close(call().cpu(), network(x), rtol=0.01, atol=0.01)  # TF32
    seen = profile(call, CUDA.device)
    assert seen["cuda_ms"] > 0
    assert sum(o["cuda_ms"] for o in seen["operators"]) <= 1.01 * seen["cuda_ms"]


def test_the_chain(tmp_path):
    """Trained, pruned with and without training, distilled, measured."""
    dense = result(run("main.py", *NET, "--save", "dense", cwd=tmp_path))
    gated = result(run("main.py", *NET, "--method", "l1", "--save", "gated", cwd=tmp_path))
    run("res50prune.py", "--model", "dense", "--save", "pruned", cwd=tmp_path)
    soft = result(run("main.py", *NET, "--method", "soft", "--save", "soft", cwd=tmp_path))
    tuned = ["--refine", "pruned", "--compile", "--epochs", "2", "--save", "tuned"]
    slim = result(run("finetune.py", *tuned, "--teacher", "dense", cwd=tmp_path))
    assert dense["machine"]["device"] == slim["machine"]["device"] == "cuda"
    assert min(one["top1"] for one in (dense, gated, soft, slim)) > 40  # a guess gets 5
    seen = result(run("benchmark.py", "dense", "tuned", "--profile", cwd=tmp_path))
    assert all(row["cuda_ms"] > 0 for row in seen["rows"])


def test_graphs_train_like_layer_by_layer(tmp_path):
    flags = ["--train-images", "512", "--precision", "fp32"]
    plain = [flag for flag in NET if flag != "--compile"]
    losses = []
    for name, how in (("graphs", NET), ("plain", plain)):
        run("main.py", *how, *flags, "--save", name, cwd=tmp_path)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train_loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
