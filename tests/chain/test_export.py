"""export.py as a user runs it, and what a user of its files does."""

import re

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from PIL import Image

import export
from tests.conftest import ROOT, result, run
from utils.checkpoint import load, model_of
from utils.data import normalise, synthetic
from utils.exports import FORMATS

TRAIN = ["--epochs", "1", "--train-images", "256", "--batch-size", "64"]
SMALL = ["--dataset", "synthetic", "--image-size", "16", "--width", "4"]
NETWORKS = {
    "slim": ["--depth", "20", "--ratio", "0.6"],
    "masked": ["--depth", "20", "--method", "weight", "--ratio", "0.9"],
    "separable": ["--depth", "26", "--arch", "resnet_de", "--ratio", "0.6", "--scope", "all"],
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Name -> folder of a pruned network."""
    work = tmp_path_factory.mktemp("networks")
    for flags in (NETWORKS["slim"][:2], NETWORKS["separable"][:4]):
        result(run("main.py", *SMALL, *flags, *TRAIN, cwd=work))
    found = {}
    for name, flags in NETWORKS.items():
        result(run("res50prune.py", *SMALL, *flags, "--save", name, "--no-eval", cwd=work))
        found[name] = work / name
    return found


def exported(*flags):
    """What the command does, without the seconds that a new process needs to import torch."""
    return export.main(export.build_parser().parse_args([str(flag) for flag in flags]))


@pytest.mark.parametrize(
    ("name", "format_"),
    [*((name, "onnx") for name in NETWORKS), ("separable", "torch"), ("separable", "openvino")],
)
def test_the_file_computes_what_the_checkpoint_computes(networks, name, format_, tmp_path):
    file = tmp_path / f"model{FORMATS[format_].suffix}"
    told = exported(networks[name], "--format", format_, "--save", file)
    assert told["file"] == str(file)
    assert told["max_logit_difference"] < 1e-4
    network = model_of(load(networks[name])).eval()
    x = torch.randn(5, 3, 16, 16)
    runner = FORMATS[format_].runner(file)
    with torch.inference_mode():
        torch.testing.assert_close(runner(x), network(x), rtol=1e-4, atol=1e-4)
    assert not list(tmp_path.glob(".export*"))
    notes = FORMATS[format_].metadata(file)
    assert [entry["stage"] for entry in notes["history"]] == ["baseline", "pruned"]
    assert notes["classes"] == load(networks[name])["data"]["classes"]


@pytest.mark.parametrize("format_", FORMATS)
def test_raw_input_takes_images_as_they_are(networks, format_, tmp_path):
    file = tmp_path / f"raw{FORMATS[format_].suffix}"
    flags = ["--format", format_, "--raw-input", "--save", file]
    exported(networks["slim"], *flags)
    checkpoint = load(networks["slim"])
    data, network = checkpoint["data"], model_of(checkpoint).eval()
    images = synthetic(16).test.images[:3]
    with torch.inference_mode():
        wanted = network(normalise(images, data["mean"], data["std"]))
    found = FORMATS[format_].runner(file)(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_onnx_runs_in_openvino_too(networks, tmp_path):
    file = tmp_path / "model.onnx"
    exported(networks["separable"], "--save", file)
    x = np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    theirs = openvino.Core().compile_model(file, "CPU", hint)([x])[0]
    (ours,) = onnxruntime.InferenceSession(file).run(None, {"images": x})
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)


def test_the_readme_example(networks, tmp_path, monkeypatch, capsys):
    """The lines that the README shows, run as they stand, outside this repository."""
    exported(networks["slim"], "--raw-input", "--save", tmp_path / "model.onnx")
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "README.md").read_text(), re.M)
    (code,) = (block for block in blocks if "InferenceSession" in block)
    assert len(code.strip().splitlines()) == 5
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(line[4:] for line in code.splitlines()), {})
    checkpoint = load(networks["slim"])
    x = normalise(torch.from_numpy(pixels)[None], *(checkpoint["data"][k] for k in ("mean", "std")))
    wanted = model_of(checkpoint).eval()(x).argmax().item()
    assert capsys.readouterr().out.strip() == checkpoint["data"]["classes"][wanted]


def test_a_file_that_computes_something_else_is_not_left_behind(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)  # nothing is near enough
    with pytest.raises(export.ExportError, match="differ"):
        exported(networks["slim"], "--format", "torch", "--save", tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_again_is_fine_and_other_files_are_safe(networks, tmp_path):
    file = tmp_path / "model.pt2"
    flags = [networks["slim"], "--format", "torch", "--save", file]
    exported(*flags)
    exported(*flags)
    with pytest.raises(ValueError, match="--force"):
        exported(*flags, "--raw-input")
    file.write_text("precious")
    refused = run("export.py", *flags, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert file.read_text() == "precious"
    assert exported(*flags, "--force")["file"] == str(file)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--save", "model.txt"], 2, "ends in .onnx"),
        (["--format", "tensorrt"], 2, "invalid choice"),
        (["--data", "nowhere", "--save", "ok.onnx"], 0, "logits within"),
    ],
)
def test_flags(networks, tmp_path, flags, code, message):
    told = run("export.py", networks["slim"], *flags, cwd=tmp_path)
    assert told.returncode == code
    assert message in told.stderr
    assert bool(told.stdout) == (code == 0)


def test_a_pruning_that_is_only_set_up_is_not_exported(networks, tmp_path):
    work = networks["slim"].parent
    flags = ["--depth", "20", "--method", "soft", "--save", "plan", "--no-eval"]
    result(run("res50prune.py", *SMALL, *flags, cwd=work))
    refused = run("export.py", work / "plan", cwd=tmp_path)
    assert refused.returncode == 2
    assert "finetune.py" in refused.stderr
