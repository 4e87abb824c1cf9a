import dataclasses
import os
from pathlib import Path

import pytest
import torch

from utils.config import NetworkConfig, Recipe, RunConfig
from utils.device import Machine
from utils.run import Run, network_for, output_folder

CPU = Machine(torch.device("cpu"), torch.float32)


def unfinished(folder, identity):
    with Run(folder, identity, CPU) as run:
        run.save_state({}, [{"epoch": 1}])


def test_fields_of_one_name_in_two_configs_are_told_apart(tmp_path):
    """The batch of a training is not that of a latency target."""
    identity = {"recipe": {"batch_size": 64}, "pruning": {"batch_size": None}}
    unfinished(tmp_path, identity)
    other = {**identity, "recipe": {"batch_size": 32}}
    with pytest.raises(ValueError, match="--batch-size was 64, is 32"):
        Run(tmp_path, other, CPU)
    with Run(tmp_path, identity, CPU) as run:
        assert run.state["rows"] == [{"epoch": 1}]


def test_a_seed_that_differs_twice_is_told_once(tmp_path):
    unfinished(tmp_path, {"recipe": {"seed": 0}, "pruning": {"seed": 0}})
    with pytest.raises(ValueError, match="made with other arguments: --seed was 0, is 1\\. "):
        Run(tmp_path, {"recipe": {"seed": 1}, "pruning": {"seed": 1}}, CPU)


def test_images_in_a_folder_are_in_data_if_nothing_else_is_said():
    given = dict.fromkeys(f.name for f in dataclasses.fields(NetworkConfig))
    network = network_for({**given, "dataset": "folder"})
    assert network.folder == str(Path("data").resolve())
    assert network_for(given).folder is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"depth": 20}, "resnet20"),
        ({"depth": 20, "width": 8}, "resnet20w8"),
        ({"depth": 20, "shortcut": "B"}, "resnet20-B"),
        ({"depth": 26, "width": 16, "arch": "resnet_de"}, "resnet_de26w16"),
        ({}, "resnet50"),
    ],
)
def test_networks_are_named_by_what_is_not_usual(given, name):
    assert NetworkConfig(**given).name == name


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (Recipe, "epochs", 0),
        (Recipe, "lr", float("nan")),
        (Recipe, "momentum", 1.5),
        (Recipe, "augment", "cutmix"),
        (NetworkConfig, "image_size", 4),
        (NetworkConfig, "depth", 21),
        (NetworkConfig, "std", (0.2, 0.0, 0.2)),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_name_of_its_flag(config, field, value):
    with pytest.raises(ValueError, match="--" + field.replace("_", "-")):
        config(**{field: value})


def test_a_save_in_links_that_loop_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    config = RunConfig(save=tmp_path / "a/out", data=tmp_path)
    with pytest.raises(OSError, match="choose another folder"):
        Run(output_folder(config, tmp_path, None), {}, CPU)


@pytest.mark.parametrize("name", ["model.pt", "result.json", "metrics.jsonl", "resume.pt"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_told_before_any_work(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is no file; remove it"):
        Run(tmp_path, {"recipe": {}}, CPU, force=True)
