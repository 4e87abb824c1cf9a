import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from models import new_spec
from pruning import METHODS, Record, resolve
from tests.conftest import lively
from utils import checkpoint as C
from utils.files import write_atomically


def checkpoint(**changes):
    model = lively(new_spec(20, 10))
    data = {"dataset": "cifar10", "classes": None, "mean": None, "std": None, "image_size": 32}
    made = C.Checkpoint("baseline", new_spec(20, 10), model.state_dict(), data, **changes)
    return made, model


def test_round_trip(tmp_path):
    made, model = checkpoint(metrics={"top1": 12.5})
    made.save(tmp_path / "model.pt")
    for path in (tmp_path, tmp_path / "model.pt", str(tmp_path)):
        again = C.load(path)
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(again.network().eval()(x), model(x), rtol=0, atol=0)
    assert again.metrics == {"top1": 12.5}


def test_half_weights_take_half_the_room_and_are_read_as_float32(tmp_path):
    made, model = checkpoint()
    made.save(tmp_path / "whole.pt")
    made.save(tmp_path / "half.pt", half=True)
    assert (tmp_path / "half.pt").stat().st_size < 0.6 * (tmp_path / "whole.pt").stat().st_size
    for name, tensor in C.load(tmp_path / "half.pt").network().state_dict().items():
        expected = model.state_dict()[name]
        assert tensor.dtype == expected.dtype
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-7)


def test_what_float16_cannot_hold_is_not_saved_so(tmp_path):
    made, _ = checkpoint()
    made.state_dict["bn1.running_var"].fill_(1e5)
    with pytest.raises(ValueError, match="too large for float16"):
        made.save(tmp_path / "half.pt", half=True)


def test_what_pruning_left_survives_the_round_trip(tmp_path):
    step = resolve({"method": "soft", "ratio": (0.5, 0.3, 0.1), "skip": ["layer1.0"]})
    state = METHODS["soft"].State(
        {"layer1.0.conv1": [0, 3]}, pending=True, counts={"layer1.0.conv1": 2}
    )
    record = Record([resolve({}), step], [0.5, 0.3, 0.1], new_spec(20, 10), 0.25, state)
    made, _ = checkpoint(pruning=record)
    made.save(tmp_path / "model.pt")
    again = C.load(tmp_path)
    assert again.pruning == record
    assert again.steps == [resolve({}), step]
    assert again.pending


def test_what_would_not_load_is_refused_when_saving(tmp_path):
    made, _ = checkpoint(metrics={"top1": np.float64(3)})
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        made.save(tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def damage(field, value):
    """Set a field, by its path, in the content of a checkpoint file."""

    def change(content):
        *path, last = field.split("/")
        for name in path:
            content = content[name]
        content[last] = value

    return change


HALF = torch.ones(16, dtype=torch.float16)  # one alone is damage
STEP = resolve({"ratio": 0.5}).as_dict()


@pytest.mark.parametrize(
    "change",
    [
        damage("data/classes", ["ant", 0]),
        damage("data/classes", ["ant"]),
        damage("data/mean", [0.5] * 4),
        damage("data/mean", [float("nan")] * 3),
        damage("data/std", [0.5, 0.0, 0.5]),
        damage("data/std", ["a", "b", "c"]),
        damage("data/image_size", "32"),
        damage("history", ["x"]),
        damage("history", [{"stage": "baseline", "seed": "../x", "arguments": {"network": {}}}]),
        damage("state_dict/bn1.weight", HALF),
        damage("state_dict/bn1.weight", None),
        damage("spec/widths/conv1", -1),
        damage("spec/arch", []),
        damage("spec/stem", "none"),
        damage("spec/width", "../x"),
        lambda content: content["spec"].pop("stem"),
        lambda content: content["pruning"].pop("method"),
        damage("pruning/method", "weight"),
        damage("pruning/ratio", 7.0),
        damage("pruning/ratio", "x"),
        damage("pruning/share_cut", 5.0),
        damage("pruning/masks", {"conv1": torch.ones(3, dtype=torch.bool)}),
        damage("pruning/dense/widths/conv1", 4),
        damage("pruning/masks", {"conv1": torch.ones(16, 3, 3, 3)}),
        damage("spec/pads", {}),
        lambda content: content["pruning"].update(pending=True, kept={"evil": [0]}),
        lambda content: content["pruning"].update(pending=True, kept={"layer1.0.conv1": [99]}),
        damage("state_dict/bn1.weight", torch.ones(16, dtype=torch.complex64)),
        damage("metrics/top1", 900.0),
        damage("stage", "foo"),
        damage("format", 0),
        damage("state_dict/bn1.running_var", -torch.ones(16)),
        damage("state_dict/conv1.weight", torch.ones(16, 3, 3, 3).to_sparse()),
        damage("pruning/steps", [{**STEP, "ratio": 2.0}]),
        damage("pruning/dense/widths", {}),
        damage("spec/pads", {"layer2.0.downsample": 10**6, "layer3.0.downsample": 16}),
        damage("spec/pads", {"layer2.0.downsample": -3, "layer3.0.downsample": 16}),
        damage("spec/pads", {"layer2.0.downsample": 1.5, "layer3.0.downsample": 16}),
        damage("metrics/x", torch.ones(2)),
        damage("metrics/x", b"bytes"),
    ],
)
def test_a_damaged_field_is_damage_of_the_file(tmp_path, change):
    record = Record([resolve({})], 0.3, new_spec(20, 10), 0.25, METHODS["l1"].State())
    made, _ = checkpoint(pruning=record)
    made.save(tmp_path / "model.pt")
    assert C.load(tmp_path).steps == record.steps
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(C.CheckpointError, match=r"x\.pt: ") as caught:
        C.load(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "spec": Payload()}, "evil.pt")
    with pytest.raises(C.CheckpointError, match=r"evil\.pt.*state_dict"):
        C.load("evil.pt")
    with open("plain.pt", "wb") as file:
        pickle.dump(Payload(), file)
    with pytest.raises(C.CheckpointError, match=r"plain\.pt"):
        C.load("plain.pt")
    assert not os.path.exists("executed")


class Small(nn.Module):
    def forward(self, x):
        return x + 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "Git LFS pointer",
        ),
        (lambda f: f.write_text("<!DOCTYPE html><title>Sign in</title>"), "a web page"),
        (lambda f: torch.jit.trace(Small(), torch.ones(1)).save(f), "TorchScript"),
        (
            lambda f: torch.export.save(torch.export.export(Small(), (torch.ones(1),)), f),
            "exported",
        ),
        (lambda f: torch.save(Small(), f), "save its state_dict"),
    ],
)
@pytest.mark.filterwarnings("ignore::Warning")
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, write, message):
    write(tmp_path / "net.pt2")
    with pytest.raises(C.CheckpointError, match=rf"net\.pt2: .*{message}") as caught:
        C.load_file(tmp_path / "net.pt2")
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_and_flags_may_lie_beside_the_weights(tmp_path):
    args = argparse.Namespace(lr=0.1, best=np.float32(3))
    content = {"w": torch.ones(2), "top1": np.float64(71.5), "curve": np.ones(3), "args": args}
    torch.save(content, tmp_path / "net.pt")
    read = C.load_file(tmp_path / "net.pt")
    assert read["args"].lr == 0.1
    assert torch.equal(read["w"], content["w"])


def test_what_numpy_wrote_is_not_made_again(tmp_path):
    """numpy takes the flags of a dtype from the file, and then bytes for a pointer to an object."""

    class Hostile:
        def __reduce__(self):
            return np.float64(0).__reduce__()[0], (Kind(), b"AAAAAAAA")

    class Kind:
        def __reduce__(self):
            return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)

    torch.save({"w": torch.ones(2), "x": Hostile()}, tmp_path / "net.pt")
    assert torch.equal(C.load_file(tmp_path / "net.pt")["w"], torch.ones(2))


def test_a_damaged_directory_of_a_zip_is_named(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint()[0].save(path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02")] ^= 1
    path.write_bytes(content)
    with pytest.raises(C.CheckpointError, match=r"model\.pt: damaged"):
        C.load(path)


def test_guesses_of_pytorch_do_not_precede_ours(tmp_path, recwarn):
    (tmp_path / "model.pt").write_bytes(b"\x80NKMXq")  # it takes this for an odd pickle protocol
    with pytest.raises(C.CheckpointError, match=r"model\.pt: damaged"):
        C.load_file(tmp_path / "model.pt")
    assert not recwarn.list


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    weights = {"conv.weight": torch.randn(3, 3), "bn.bias": torch.randn(3)}
    save_file(weights, tmp_path / "net.safetensors")
    read = C.load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    (tmp_path / "net.safetensors").write_bytes(b"12345678")
    with pytest.raises(C.CheckpointError, match="damaged"):
        C.load_file(tmp_path / "net.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 100, 50_000])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "model.pt"
    checkpoint()[0].save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(C.CheckpointError, match=r"model\.pt: damaged") as caught:
        C.load(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_never_gives_other_weights(tmp_path):
    path, whole = tmp_path / "model.pt", checkpoint()[0]
    whole.save(path)
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), len(content) // 200):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        )
        try:
            read = C.load(path).state_dict
            assert all(torch.equal(read[key], value) for key, value in whole.state_dict.items())
        except C.CheckpointError:
            refused += 1
    assert refused > 150  # the rest is padding


def test_other_content_is_named(tmp_path):
    checkpoint()[0].save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    for change, message in (
        ({"format": C.FORMAT + 1}, "newer version"),
        ({"history": ...}, "lacks history"),
    ):
        broken = {k: v for k, v in {**content, **change}.items() if v is not ...}
        torch.save(broken, tmp_path / "model.pt")
        with pytest.raises(C.CheckpointError, match=message):
            C.load(tmp_path)
    torch.save([1], tmp_path / "model.pt")
    with pytest.raises(C.CheckpointError, match="not a checkpoint"):
        C.load(tmp_path)
    with pytest.raises(C.CheckpointError, match="no such checkpoint"):
        C.load(tmp_path / "nowhere")


def test_parameters_are_as_good_as_tensors(tmp_path):
    made, _ = checkpoint()
    made.save(tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["state_dict"]["bn1.running_var"].requires_grad_()
    torch.save(content, tmp_path / "model.pt")
    network = C.load(tmp_path).network()
    assert not network.bn1.running_var.requires_grad
    assert network.bn1.weight.requires_grad


def test_a_full_disk_is_named(tmp_path):
    def write(_):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(OSError, match=r"No space left on device: '.*model\.pt'"):
        write_atomically(tmp_path / "model.pt", write)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("old")

    def half(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
