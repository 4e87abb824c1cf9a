"""export.py as a user runs it, and what a user of its files does."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import export
from measurement.runtimes import FORMATS, REFERENCE
from models import new_spec
from tests.command import ROOT, result, run
from tests.conftest import lively
from tests.measurement.test_runtimes import hostile_archive
from utils.checkpoint import load
from utils.data import normalize, synthetic

onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

pytestmark = pytest.mark.xdist_group("export")  # one worker: the fixture takes seconds
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
    network = load(networks[name]).network().eval()
    x = torch.randn(5, 3, 16, 16)
    bind = FORMATS[format_].load(file, REFERENCE)
    with torch.inference_mode():
        torch.testing.assert_close(bind(x)(), network(x), rtol=1e-4, atol=1e-4)
    assert not list(tmp_path.glob(".export*"))
    notes = FORMATS[format_].metadata(file)
    assert [entry["stage"] for entry in notes["history"]] == ["baseline", "pruned"]
    assert notes["classes"] == load(networks[name]).data["classes"]


@pytest.mark.parametrize(("format_", "raw"), [("onnx", False), ("openvino", True)])
def test_int8(networks, format_, raw, tmp_path):
    file = tmp_path / f"model{FORMATS[format_].suffix}"
    flags = ["--format", format_, "--int8", "--save", file, *["--raw-input"] * raw]
    told = exported(networks["slim"], *flags)
    checkpoint, test = load(networks["slim"]), synthetic(16).test
    x = normalize(test.images, *(checkpoint.data[k] for k in ("mean", "std")))
    with torch.inference_mode():
        wanted = checkpoint.network().eval()(x)
    found = FORMATS[format_].load(file, REFERENCE)(test.images if raw else x)()
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert 1e-4 < error < 0.25  # not what it was, but near
    for logits, key in ((found, "top1"), (wanted, "top1_before")):
        top1 = 100 * (logits.argmax(1) == test.labels).double().mean().item()
        assert told[key] == pytest.approx(top1, abs=0.11)
    assert FORMATS[format_].metadata(file)["precision"] == "int8"
    assert f"{told['top1']:.2f} % on {len(test.labels)} test images" in export.summary(told)


def test_int8_that_loses_too_much_is_not_kept(networks, tmp_path):
    """The values of a channel that nothing reads leave 8 bits for no other."""
    network = load(networks["slim"]).network()
    with torch.no_grad():
        for block in (b for layer in (network.layer1, network.layer2) for b in layer):
            block.bn1.weight[0] = block.bn1.bias[0] = 1e5
            block.conv2.weight[:, 0] = 0
    content = torch.load(networks["slim"] / "model.pt", weights_only=True)
    torch.save({**content, "state_dict": network.state_dict()}, tmp_path / "model.pt")
    with pytest.raises(export.ExportError, match=r"top-1 falls from .* more than --max-drop 0.5"):
        exported(tmp_path / "model.pt", "--int8", "--max-drop", "0.5")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("format_", FORMATS)
def test_raw_input_takes_images_as_they_are(networks, format_, tmp_path):
    file = tmp_path / f"raw{FORMATS[format_].suffix}"
    flags = ["--format", format_, "--raw-input", "--save", file]
    exported(networks["slim"], *flags)
    checkpoint = load(networks["slim"])
    data, network = checkpoint.data, checkpoint.network().eval()
    images = synthetic(16).test.images[:3]
    with torch.inference_mode():
        wanted = network(normalize(images, data["mean"], data["std"]))
    found = FORMATS[format_].load(file, REFERENCE)(images)()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_resnet50_at_60_percent_in_both_runtimes(tmp_path):
    """Within 1e-3 of the checkpoint in float32, wherever the file runs."""
    torch.save(lively(new_spec(50, 20)).state_dict(), tmp_path / "elsewhere.pt")
    flags = ["--dataset", "synthetic", "--ratio", "0.6", "--no-eval", "--save", "slim"]
    command = [
        "res50prune.py",
        "--model",
        "elsewhere.pt",
        "--mean",
        *"000",
        "--std",
        *"111",
        *flags,
    ]
    result(run(*command, cwd=tmp_path))
    exported(tmp_path / "slim")
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        wanted = load(tmp_path / "slim").network().eval()(x)
    file = tmp_path / "slim/model.onnx"
    program = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (ours,) = onnxruntime.InferenceSession(file).run(None, {"images": x.numpy()})
    tolerance = 1e-3 * max(1.0, wanted.abs().max().item())
    for found in (ours, program([x.numpy()])[0]):
        assert (torch.from_numpy(found) - wanted).abs().max() < tolerance


def test_the_documented_example(networks, tmp_path):
    """The lines that docs/usage.md shows, run as they stand, outside this repository."""
    exported(networks["slim"], "--raw-input", "--save", tmp_path / "model.onnx")
    usage = (ROOT / "docs/usage.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", usage, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if "InferenceSession" in block)
    assert len([line for line in code.splitlines() if line]) == 5
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    command = [sys.executable, "-I", "-c", code]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    checkpoint = load(networks["slim"])
    x = normalize(torch.from_numpy(pixels)[None], *(checkpoint.data[k] for k in ("mean", "std")))
    wanted = checkpoint.network().eval()(x).argmax().item()
    assert printed.stdout.strip() == checkpoint.data["classes"][wanted]


def test_logits_that_are_not_numbers_are_noticed(tmp_path):
    """At batch 1 only, where a maximum over Python's floats would lose them."""

    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] / (x.shape[0] - 1)

    example = torch.zeros(2, 3, 4, 4)
    FORMATS["torch"].write(Odd(), example, tmp_path / "odd.pt2", {}, False)
    bind = FORMATS["torch"].load(tmp_path / "odd.pt2", REFERENCE)
    with pytest.raises(export.ExportError, match="nan"):
        export.verify_logits(bind, example, torch.zeros(2, 2))


def test_a_file_that_computes_something_else_is_not_left_behind(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)  # nothing is near enough
    with pytest.raises(export.ExportError, match="differ"):
        exported(networks["slim"], "--format", "torch", "--save", tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_the_file_is_compared_with_the_checkpoint_and_not_with_itself(
    networks, tmp_path, monkeypatch
):
    """Here with a network that went wrong when its BatchNorms were folded."""
    flags = [networks["slim"], "--int8", "--max-drop", "100", "--save", tmp_path / "model.onnx"]
    right = exported(*flags)
    monkeypatch.setattr(export, "folded", lambda network: torch.nn.Sequential(network, Negative()))
    wrong = exported(*flags)
    assert wrong["top1_before"] == right["top1_before"]
    assert wrong["top1"] != right["top1"]


class Negative(torch.nn.Module):
    def forward(self, x):
        return -x


def test_an_exported_program_holds_no_images(networks, tmp_path):
    file = tmp_path / "model.pt2"
    exported(networks["slim"], "--format", "torch", "--save", file)
    for x in torch.export.load(file).example_inputs[0]:
        assert x.shape[0] == 2
        assert not x.any()


def test_the_checkpoint_itself_is_safe(networks, tmp_path):
    (tmp_path / "net.onnx").write_bytes((networks["slim"] / "model.pt").read_bytes())
    with pytest.raises(ValueError, match="checkpoint itself"):
        exported(tmp_path / "net.onnx", "--force")
    assert load(tmp_path / "net.onnx")


def test_weights_of_another_file_are_safe_too(networks, tmp_path):
    (tmp_path / "model.bin").write_text("precious")
    with pytest.raises(ValueError, match=r"model\.bin is something else"):
        exported(networks["slim"], "--format", "openvino", "--save", tmp_path / "model.xml")
    assert (tmp_path / "model.bin").read_text() == "precious"


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


def test_a_hostile_file_in_its_place_runs_nothing(networks, tmp_path):
    file, mark = tmp_path / "model.pt2", tmp_path / "mark"
    hostile_archive(file, mark, {"checkpoint": "another"})
    flags = [networks["slim"], "--format", "torch", "--save", file]
    with pytest.raises(ValueError, match="--force"):
        exported(*flags)
    exported(*flags, "--force")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--save", "model.txt"], 2, "ends in .onnx"),
        (["--format", "tensorrt"], 2, "invalid choice"),
        (["--format", "torch", "--int8"], 2, "--int8 is not for --format torch"),
        (["--max-drop", "1"], 2, "goes with --int8"),
        (["--save", "file/below/model.onnx"], 1, "choose another folder"),
        (["--save", "loop/model.onnx"], 1, "choose another folder"),
    ],
)
def test_errors(networks, tmp_path, flags, code, message):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    told = run("export.py", networks["slim"], *flags, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (code, "")
    assert message in told.stderr


def test_what_it_tells(networks, tmp_path):
    told = result(run("export.py", networks["slim"], "--save", "ok.onnx", cwd=tmp_path))
    assert told["bytes"] == (tmp_path / "ok.onnx").stat().st_size
    assert (told["stage"], told["format"], told["images"]) == ("export", "onnx", 256)
    summary = export.summary(told)
    assert "ok.onnx" in summary
    assert f"within {told['max_logit_difference']:.1e} on 256 test images" in summary
    assert 'InferenceSession("ok.onnx")' in summary.splitlines()[-1]


def test_a_pruning_that_is_only_set_up_is_not_exported(networks, tmp_path):
    work = networks["slim"].parent
    flags = ["--depth", "20", "--method", "soft", "--save", "plan", "--no-eval"]
    result(run("res50prune.py", *SMALL, *flags, cwd=work))
    refused = run("export.py", work / "plan", cwd=tmp_path)
    assert refused.returncode == 2
    assert "finetune.py" in refused.stderr
