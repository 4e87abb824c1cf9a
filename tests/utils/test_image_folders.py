"""Class folders as people have them: what is read, and what is left out with a word."""

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from utils import data as D
from utils import image_folders

SIZE = 8


def make(root, classes=("ant", "bee"), parts=("train", "test")):
    """One image for each class in each part, gray, and darker the later the class."""
    for part in parts:
        for index, name in enumerate(classes):
            file = root / part / name / "0.png"
            file.parent.mkdir(parents=True)
            Image.new("RGB", (SIZE, SIZE), (200 - 50 * index,) * 3).save(file)
    return root


def load(root, **how):
    return D.load("folder", root, SIZE, **how)


def first(root, image, name="train/ant/0.png", **how):
    """The first training image, if `image` is in its place."""
    (root / "train/ant/0.png").unlink()
    image.save(root / name)
    return load(root, **how).train.images[0]


def test_pixels_of_16_bits_are_scaled(tmp_path):
    levels = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 1000
    read = first(make(tmp_path), Image.fromarray(levels))
    expected = torch.from_numpy((levels / 65535 * 255).round().astype(np.uint8))
    assert torch.equal(read, expected[:, :, None].expand(-1, -1, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path, dtype):
    image = Image.fromarray(np.ones((SIZE, SIZE), dtype))
    with pytest.raises(D.DataError, match=r"0\.tiff \(pixels of 32 bits, whose scale is unknown"):
        first(make(tmp_path), image, "train/ant/0.tiff")


@pytest.mark.parametrize("end", ["jfif", "gif", "webp", "ppm", "JPG"])
def test_whatever_pillow_reads_is_read(tmp_path, end):
    image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    assert first(make(tmp_path), image, f"train/ant/0.{end}").min() > 250


def test_other_files_are_counted_and_named(tmp_path, capsys):
    make(tmp_path)
    for name in ("a.txt", "b.txt", "c.csv", "d"):
        (tmp_path / "train/bee" / name).touch()
    assert len(load(tmp_path).train.labels) == 2
    told = "left out, as no images that can be read: 4 (.txt 2, .csv 1, no extension 1)"
    assert f"{tmp_path}/train: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "._x.png"])
def test_what_file_managers_leave_behind_is_no_class_and_no_image(tmp_path, name, capsys):
    make(tmp_path)
    for folder in ("train", "train/ant", "test", "test/bee"):
        if name.endswith("png"):
            (tmp_path / folder / name).write_bytes(b"no image")
        else:
            (tmp_path / folder / name).mkdir()
            (tmp_path / folder / name / "0.png").write_bytes(b"no image")
    data = load(tmp_path)
    assert data.classes == ["ant", "bee"]
    assert (len(data.train.labels), len(data.test.labels)) == (2, 2)
    assert "left out" not in capsys.readouterr().err


def test_classes_named_by_numbers(tmp_path, capsys):
    make(tmp_path, ["2", "10", "1"])
    data = load(tmp_path)
    assert data.classes == ["1", "10", "2"]
    assert "the classes are numbers, and taken in the order of strings" in capsys.readouterr().err
    numbers = load(tmp_path, class_order="numbers")
    assert numbers.classes == ["1", "2", "10"]
    # The folders are read in the same order, and "10" is the second of the images made.
    assert numbers.train.images[numbers.train.labels == 2].unique().tolist() == [150]
    load(tmp_path, class_order="strings")
    assert "are numbers" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="--class-order numbers: not all classes in "):
        load(make(tmp_path / "names"), class_order="numbers")


def test_images_stand_upright(tmp_path, capsys):
    image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, SIZE, SIZE // 2))  # dark above
    exif = image.getexif()
    exif[0x0112] = 3  # by half a turn
    image.save(make(tmp_path) / "train/ant/0.png", exif=exif)
    read = load(tmp_path).train.images[0]
    assert "train: 1 of 2 images turned upright" in capsys.readouterr().err
    assert read[: SIZE // 2].min() == 255
    assert read[SIZE // 2 :].max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode, capsys):
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (SIZE, SIZE), 0)
        image.info["transparency"] = 0
    assert first(make(tmp_path), image if mode == "P" else image.convert(mode)).min() == 255
    assert "train: 1 of 2 images with transparent pixels" in capsys.readouterr().err


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    read = first(make(tmp_path), Image.fromarray(values).convert("RGBA"))
    assert np.array_equal(read, values)
    assert "transparent" not in capsys.readouterr().err


def test_gray_maps_of_16_bits_are_scaled(tmp_path):
    make(tmp_path)
    (tmp_path / "train/ant/0.png").unlink()
    content = f"P5 {SIZE} {SIZE} 65535\n".encode() + b"\x80\x80" * SIZE * SIZE
    (tmp_path / "train/ant/0.pgm").write_bytes(content)
    assert load(tmp_path).train.images[0].unique().tolist() == [128]


def test_what_pillow_only_knows_by_name_is_left_out(tmp_path, capsys):
    make(tmp_path)
    for end in ("h5", "eps", "mpg"):
        (tmp_path / f"train/ant/features.{end}").write_bytes(b"no image")
    assert len(load(tmp_path).train.labels) == 2
    assert "no images that can be read: 3" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_named_together(tmp_path):
    make(tmp_path)
    for index in range(1, 6):
        (tmp_path / f"train/ant/{index}.png").write_bytes(b"no image")
    with pytest.raises(D.DataError, match=r"1\.png .*2\.png .*3\.png .* and 2 more$"):
        load(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_accents_may_be_written_in_two_ways(tmp_path):
    make(tmp_path, ["caf\u00e9", "zoo"], ["train"])
    make(tmp_path, [unicodedata.normalize("NFD", "caf\u00e9"), "zoo"], ["test"])
    data = load(tmp_path)
    assert data.classes == ["caf\u00e9", "zoo"]
    assert data.test.images.unique(dim=0).shape[0] == 2


@pytest.mark.parametrize("name", ["val", "valid"])
def test_a_folder_of_another_name_may_be_the_test_images(tmp_path, name, capsys):
    make(tmp_path, parts=("train", name))
    (tmp_path / "test").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "test/without a class.png")
    assert len(load(tmp_path).test.labels) == 2
    assert f"no class folders in test/; {name}/ takes its place" in capsys.readouterr().err


def test_images_of_other_shapes_are_squashed_or_cropped_and_it_is_said(tmp_path, capsys):
    image = Image.new("RGB", (3 * SIZE, SIZE), (255, 255, 255))
    image.paste((0, 0, 0), (SIZE, 0, 2 * SIZE, SIZE))  # dark in the middle
    squashed = first(make(tmp_path), image)
    assert squashed[:, 0].min() > 200
    assert "train: 1 of 2 images not square, squashed" in capsys.readouterr().err
    assert load(tmp_path, resize="crop").train.images[0].max() == 0
    assert "train: 1 of 2 images not square, cropped" in capsys.readouterr().err


def test_it_is_said_where_the_decoded_images_are(tmp_path, capsys):
    load(make(tmp_path))
    assert f"decoded images kept in {tmp_path}/.folder-cache.pt" in capsys.readouterr().err


def test_an_image_that_is_as_it_should_be_is_not_touched(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "0.png")
    read, changed = image_folders.read(str(tmp_path / "0.png"), SIZE, "squash")
    assert np.array_equal(read, values)
    assert not changed


def test_a_class_without_images_says_what_is_there_instead(tmp_path, capsys):
    make(tmp_path)
    (tmp_path / "train/ant/0.png").rename(tmp_path / "train/ant/0.heic")
    with pytest.raises(D.DataError, match="train/ant: no images in it"):
        load(tmp_path)
    assert "no images that can be read: 1 (.heic 1)" in capsys.readouterr().err
