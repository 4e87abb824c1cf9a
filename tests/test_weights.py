"""The trained networks that come with the repository: whole, and computed as ever."""

import re

import pytest
import torch

from measurement.rows import Subject, costs_of
from models import cost_of
from tests.command import ROOT
from utils.checkpoint import load
from utils.files import sha256

ROWS = re.findall(
    r"\| `(.+\.pt)` \| (.+) \| (.+) \| (.+) \| (.+) \| (\w+) \|",
    (ROOT / "weights/README.md").read_text(),
)
# Of the image below: the class, and the logits of the first three classes.
LOGITS = {
    "resnet20.pt": (23, [1.4443, -2.1944, -0.9031]),
    "resnet20-half.pt": (71, [1.4742, -3.2048, -0.5094]),
}


def test_all_files_are_described():
    assert {name for name, *_ in ROWS} == {file.name for file in ROOT.glob("weights/*.pt")}
    assert set(LOGITS) == {name for name, *_ in ROWS}


@pytest.mark.parametrize(("name", "top1", "params", "macs", "size", "digest"), ROWS)
def test_a_network_is_what_its_row_says(name, top1, params, macs, size, digest):
    file = ROOT / "weights" / name
    assert sha256(file) == digest
    assert f"{file.stat().st_size:,}" == size
    assert file.stat().st_size < 1e6
    checkpoint = load(file)
    cost = cost_of(checkpoint.spec, checkpoint.image_size)
    assert (f"{cost.params:,}", f"{cost.macs:,}") == (params, macs)
    assert checkpoint.metrics["top1"] == pytest.approx(float(top1), abs=0.2)  # before float16
    assert checkpoint.directory is None
    image = torch.linspace(-1, 1, 3 * 32 * 32).sin().view(1, 3, 32, 32)
    with torch.no_grad():
        (logits,) = checkpoint.network().eval()(image)
    top, first = LOGITS[name]
    assert logits.argmax() == top
    assert logits[:3].tolist() == pytest.approx(first, abs=1e-3)


def test_a_file_is_no_smaller_than_its_compressed_weights():
    checkpoint = load(ROOT / "weights/resnet20.pt")
    costs = costs_of(Subject("dense", checkpoint, checkpoint.network().eval()))
    assert 0.8 * costs["file_bytes"] < costs["compressed_bytes"] < costs["file_bytes"]
