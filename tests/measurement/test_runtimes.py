"""One table of runtimes, for engines and exports; reading a file's metadata runs nothing."""

import io
import pickle
import zipfile

import pytest
import torch

import export
from measurement.engines import ENGINES, FILES
from measurement.runtimes import FORMATS, REFERENCE
from models import new_spec
from tests.conftest import lively

SPEC = new_spec(20, 7, width=2)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_and_exports_go_through_the_same_entry(engine, tmp_path, monkeypatch):
    pytest.importorskip(engine)
    name, network, x = FILES[engine].format, lively(SPEC), torch.randn(2, 3, 8, 8)
    own, used = FORMATS[name], []

    def spy(step):
        def call(*args):
            used.append(step)
            return getattr(own, step)(*args)

        return call

    steps = ("write", "load")
    monkeypatch.setitem(FORMATS, name, own._replace(**{step: spy(step) for step in steps}))
    with torch.inference_mode():
        wanted = network(x)
    torch.testing.assert_close(ENGINES[engine](network, REFERENCE)(x)(), wanted)
    assert used == ["write", "load"]
    file = tmp_path / f"model{own.suffix}"
    own.write(network, x, file, {"a": [1]}, False)
    assert export.verify_logits(own.load(file, REFERENCE), x, wanted) < 1e-4
    assert used == ["write", "load"]


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_comes_back(name, tmp_path):
    for package in FORMATS[name].needs:
        pytest.importorskip(package)
    notes = {"classes": ["a", "b \u00e9"], "mean": [0.1, 0.2], "history": [{"seed": 0}, None]}
    file = tmp_path / f"model{FORMATS[name].suffix}"
    FORMATS[name].write(lively(SPEC), torch.randn(2, 3, 8, 8), file, notes, False)
    assert FORMATS[name].metadata(file) == notes


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def hostile_archive(file, mark, notes):
    """A whole torch.export archive, each of whose pickles makes the file `mark`."""
    FORMATS["torch"].write(lively(SPEC), torch.randn(2, 3, 8, 8), file, notes, False)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    torch.save(Hostile(mark), buffer, pickle_protocol=pickle.DEFAULT_PROTOCOL)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, buffer.getvalue() if name.endswith(".pt") else content)


def test_reading_a_hostile_archive_runs_nothing(tmp_path):
    file, mark = tmp_path / "model.pt2", tmp_path / "mark"
    hostile_archive(file, mark, {"checkpoint": "a"})
    assert FORMATS["torch"].metadata(file) == {"checkpoint": "a"}
    assert not mark.exists()
    with zipfile.ZipFile(file) as archive:  # the mark is no blank
        (name, *_) = (n for n in archive.namelist() if n.endswith(".pt"))
        torch.load(io.BytesIO(archive.read(name)), weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"precious", b"PK\x05\x06" + bytes(18)])
def test_other_files_have_no_metadata(content, tmp_path):
    file = tmp_path / "model.pt2"
    file.write_bytes(content)
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        FORMATS["torch"].metadata(file)


@pytest.mark.parametrize(
    ("name", "target"), [("torch", "/dev/full"), ("openvino", "/proc/net.xml")]
)
def test_a_file_that_cannot_be_written_is_an_error_of_the_system(name, target, tmp_path):
    """Not the end of the process, or of a C++ stream."""
    with pytest.raises(OSError, match=r"No space left|cannot be written"):
        FORMATS[name].write(lively(SPEC), torch.randn(2, 3, 8, 8), tmp_path / target, {}, False)
