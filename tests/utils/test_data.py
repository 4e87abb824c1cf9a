import hashlib
import io
import pickle
import shutil
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from utils import data as D


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_folder_tree(tree):
    data = D.load("folder", tree, image_size=8)
    assert data.classes == ["ant", "bee", "cat"]
    assert data.train.images.shape == (36, 8, 8, 3)
    assert data.train.images.dtype == torch.uint8
    assert data.test.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    scaled = data.train.images.double() / 255
    torch.testing.assert_close(
        torch.tensor(data.mean).double(), scaled.mean((0, 1, 2)), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        torch.tensor(data.std).double(), scaled.std((0, 1, 2), correction=0), atol=1e-4, rtol=0
    )


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip((*a.train, *a.test), (*b.train, *b.test), strict=True)
    )


def test_cache_is_used_checked_and_rebuilt(tree, tmp_path, monkeypatch):
    root = tmp_path / "tree"
    shutil.copytree(tree, root)
    first = D.load("folder", root, 12)
    cache = root / ".folder-cache.pt"
    written = cache.stat().st_mtime_ns
    monkeypatch.chdir(root)
    for name in (root, Path("."), Path("../tree")):  # one folder, however it is named
        assert same(D.load("folder", name, 12), first)
        assert cache.stat().st_mtime_ns == written

    Image.fromarray(np.full((12, 12, 3), 255, np.uint8)).save(root / "test/ant/0.png")
    changed = D.load("folder", root, 12)
    assert changed.test.images[0].min() == 255  # a changed image is seen
    assert D.load("folder", root, 8).image_size == 8  # another size is not taken from it

    cache.write_bytes(cache.read_bytes()[:1000])
    assert same(D.load("folder", root, 12), changed)  # nor a damaged cache


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["train"][1].add_(1000),
        lambda data: data["test"][1].sub_(1),
        lambda data: data.update(train=(data["train"][0][:2], data["train"][1])),
        lambda data: data.update(train=(data["train"][0][:, :4, :4], data["train"][1])),
        lambda data: data.update(mean=[float("nan")] * 3),
        lambda data: data.update(std=[0.5, 0.0, 0.5]),
    ],
)
def test_a_cache_of_what_cannot_be_is_made_again(tree, tmp_path, change):
    root = tmp_path / "tree"
    shutil.copytree(tree, root)
    first = D.load("folder", root, 12)
    cache = root / ".folder-cache.pt"
    content = torch.load(cache, weights_only=True)
    change(content["data"])
    torch.save(content, cache)
    assert same(D.load("folder", root, 12), first)


def test_a_directory_that_cannot_be_written_to_still_works(tree, monkeypatch):
    def refuse(path, write):
        raise PermissionError(path)

    monkeypatch.setattr(D, "save_plain", refuse)
    assert len(D.load("folder", tree, 9).classes) == 3


def broken(tree, tmp_path, how):
    root = tmp_path / "broken"
    shutil.copytree(tree, root, ignore=shutil.ignore_patterns(".*"))
    if how == "image":
        (root / "train/bee/3.png").write_bytes(b"no image")
    elif how == "truncated":
        file = root / "train/bee/3.png"
        file.write_bytes(file.read_bytes()[:60])
    elif how == "class":
        shutil.rmtree(root / "test/cat")
    elif how == "empty":
        for file in (root / "test/cat").iterdir():
            file.unlink()
    elif how == "split":
        shutil.rmtree(root / "test")
    return root


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("image", r"not readable as images: .*bee/3\.png \("),
        ("truncated", r"not readable as images: .*bee/3\.png \("),
        ("class", "differ in the classes cat"),
        ("empty", "cat"),
        ("split", "test"),
    ],
)
def test_broken_trees_are_refused_and_leave_nothing(tree, tmp_path, how, message):
    root = broken(tree, tmp_path, how)
    with pytest.raises(D.DataError, match=message) as caught:
        D.load("folder", root, 12)
    assert "\n" not in str(caught.value)
    assert not list(root.glob(".*"))


def test_a_tree_with_the_wrong_number_of_classes_is_not_cifar(tree):
    with pytest.raises(D.DataError, match="3 classes, but cifar10 has 10"):
        D.load("cifar10", tree)


# -------------------------------------------------------------------- official archive


def archive_of(images, labels):
    """A small archive of the layout of CIFAR-100, and the hashes that describe it."""
    names = ["apple", "bear"]
    files = {
        "train": {"data": images, "fine_labels": labels},
        "test": {"data": images[:2], "fine_labels": labels[:2]},
        "meta": {"fine_label_names": names},
    }
    packed, hashes = io.BytesIO(), {}
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            raw = pickle.dumps(content)
            hashes[name] = hashlib.md5(raw).hexdigest()
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return packed.getvalue(), hashes


@pytest.fixture
def served(monkeypatch):
    """Serve a small archive in place of the official one; the hash checks are the real ones."""
    images = np.random.default_rng(0).integers(0, 256, (6, 3 * 32 * 32), np.uint8)
    raw, hashes = archive_of(images, [0, 1, 1, 0, 1, 0])
    official = torchvision.datasets.CIFAR100
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(raw).hexdigest())
    monkeypatch.setattr(official, "train_list", [["train", hashes["train"]]])
    monkeypatch.setattr(official, "test_list", [["test", hashes["test"]]])
    monkeypatch.setattr(official, "meta", {**official.meta, "md5": hashes["meta"]})
    answer = {"raw": raw, "asked": 0}

    def urlopen(request, *args, **kwargs):
        answer["asked"] += 1
        if answer["raw"] is None:
            raise urllib.error.URLError("no network")
        response = io.BytesIO(answer["raw"])
        response.length = len(answer["raw"])
        response.url = official.url
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return answer, images


def test_the_archive_is_downloaded_once_and_read(served, tmp_path):
    answer, images = served
    data = D.load("cifar100", tmp_path)
    expected = images.reshape(6, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(data.train.images.numpy(), expected)
    assert data.train.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert len(data.test.labels) == 2
    assert data.classes == ["apple", "bear"]
    answer["raw"], asked = None, answer["asked"]
    assert same(D.load("cifar100", tmp_path), data)
    (tmp_path / ".cifar100-cache.pt").unlink()
    shutil.rmtree(tmp_path / "cifar-100-python")
    assert same(D.load("cifar100", tmp_path), data)  # from the archive that was kept
    assert answer["asked"] == asked


def test_a_wrong_hash_is_refused_and_downloaded_again(served, tmp_path):
    answer, _ = served
    right = answer["raw"]
    answer["raw"] = right[:-10] + b"0123456789"
    with pytest.raises(D.DataError, match="corrupted") as caught:
        D.load("cifar100", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cifar-100-python").exists()
    answer["raw"] = right
    assert len(D.load("cifar100", tmp_path).train.labels) == 6


@pytest.mark.parametrize("part", ["train", "test", "meta"])
def test_what_was_unpacked_in_part_is_unpacked_again(served, tmp_path, part):
    data = D.load("cifar100", tmp_path)
    (tmp_path / ".cifar100-cache.pt").unlink()
    (tmp_path / "cifar-100-python" / part).write_bytes(b"half of it")
    served[0]["raw"] = None
    assert same(D.load("cifar100", tmp_path), data)


def test_data_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a folder"):
        D.load("cifar100", tmp_path / "file")


def test_offline_without_data_says_what_to_do(served, tmp_path):
    served[0]["raw"] = None
    with pytest.raises(D.DataError, match=r"no network.*cifar-100-python\.tar\.gz"):
        D.load("cifar100", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_archive_on_disk_is_named(served, tmp_path):
    answer, _ = served
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half an archive")
    answer["raw"] = None
    with pytest.raises(D.DataError, match=r"cifar-100-python\.tar\.gz is damaged .*no network"):
        D.load("cifar100", tmp_path)


# ------------------------------------------------------------------------------ batches


def test_normalise_by_hand():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(2, 4, 4, 3)
    x = D.normalize(images, [0.5, 0.25, 0.0], [0.5, 0.25, 2.0])
    assert x.shape == (2, 3, 4, 4)
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = torch.tensor([(0 - 0.5) / 0.5, (128 / 255 - 0.25) / 0.25, 0.5])
    torch.testing.assert_close(x[0, :, 2, 3], expected)


def epoch(data, seed, augment="crop-flip", batch=16, part=slice(None)):
    split = data.train._replace(images=D.pad_for_crops(data.train.images))
    return list(D.epoch_batches(data, split, batch, seed, augment, part))


def test_an_epoch_shows_every_image_once(tree):
    data = D.load("folder", tree, 12)
    batches = epoch(data, 0, "none", batch=12)
    assert [len(y) for _, y in batches] == [12, 12, 12]
    shown = sorted(x.sum().item() for batch, _ in batches for x in batch)
    stored = D.normalize(data.train.images, data.mean, data.std)
    assert shown == pytest.approx(sorted(x.sum().item() for x in stored), rel=1e-4, abs=1e-3)


def test_augmentation_crops_and_flips_within_the_padding():
    data = D.synthetic()
    data = data._replace(train=D.Split(*(part[:64] for part in data.train)))
    padded = D.pad_for_crops(data.train.images)
    views = {}
    for index, image in enumerate(padded):
        for top in range(9):
            for left in range(9):
                window = image[top : top + 32, left : left + 32]
                views[window.numpy().tobytes()] = (index, top, left, False)
                views[window.flip(1).contiguous().numpy().tobytes()] = (index, top, left, True)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    seen = []
    for x, y in epoch(data, 3):
        raw = ((x.permute(0, 2, 3, 1) * std + mean) * 255).round().to(torch.uint8)
        for image, label in zip(raw, y, strict=True):
            found = views[image.contiguous().numpy().tobytes()]
            assert data.train.labels[found[0]] == label
            seen.append(found)
    assert sorted(s[0] for s in seen) == list(range(64))
    assert len({s[1:3] for s in seen}) > 20
    assert 10 < sum(s[3] for s in seen) < 54


def test_batches_depend_on_the_seed_alone_and_can_be_shared(tree):
    data = D.load("folder", tree, 12)
    whole = epoch(data, 5)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, epoch(data, 5), strict=True))
    assert not torch.equal(whole[0][0], epoch(data, 6)[0][0])
    halves = [epoch(data, 5, part=slice(r, None, 2)) for r in range(2)]
    for x, left, right in zip(whole, *halves, strict=True):
        assert torch.equal(x[0][0::2], left[0])
        assert torch.equal(x[1][1::2], right[1])


def test_synthetic_is_the_same_every_time_and_hard_enough():
    a, b = D.synthetic(16), D.synthetic(16)
    assert same(a, b)
    assert a.image_size == 16
    flat = a.train.images.flatten(1).float()
    means = torch.stack([flat[a.train.labels == k].mean(0) for k in range(len(a.classes))])
    nearest = torch.cdist(a.test.images.flatten(1).float(), means).argmin(1)
    accuracy = (nearest == a.test.labels).float().mean()
    assert 0.1 < accuracy < 0.5  # a nearest-mean classifier does not solve it
