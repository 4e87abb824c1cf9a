"""Files that were not written by this project, through the commands."""

import re
import shutil

import pytest
import torch
from torch.nn.utils import prune

from models import build, new_spec
from tests.command import result, run
from utils.checkpoint import load

pytestmark = pytest.mark.xdist_group("elsewhere")  # one network serves all
DATA = ["--dataset", "synthetic", "--image-size", "16"]
TRAIN = ["--epochs", "3", "--train-images", "2048", "--batch-size", "32", "--lr", "0.1"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder with the state dict of a trained network, and its mean and std as flags."""
    folder = tmp_path_factory.mktemp("theirs")
    net = ["--depth", "8", "--width", "8"]
    trained = result(run("main.py", *net, *DATA, *TRAIN, "--save", "ours", cwd=folder))
    checkpoint = load(folder / "ours")
    torch.save(checkpoint.state_dict, folder / "net.pt")
    moments = [("--mean", checkpoint.data["mean"]), ("--std", checkpoint.data["std"])]
    flags = [word for name, values in moments for word in (name, *map(str, values))]
    return folder, flags, trained["top1"]


def read(theirs, tmp_path, *flags, file="net.pt"):
    folder, moments, _ = theirs
    flags = [*DATA, *flags, *([] if "--mean" in flags else moments)]
    return run(
        "res50prune.py", "--model", folder / file, *flags, "--save", tmp_path / "out", cwd=folder
    )


def test_a_file_that_is_read_as_it_was_trained_raises_no_doubt(theirs, tmp_path):
    process = read(theirs, tmp_path)
    assert result(process)["top1_before"] == theirs[2]
    assert (
        "1 + 1 + 1 basic blocks; assumed: stem cifar (--stem), shortcut A (--shortcut)"
        in process.stderr
    )
    assert "warning" not in process.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ["--stem", "cifar-pool"],
        ["--shortcut", "A-end"],
        ["--mean", "0", "0", "0", "--std", "1", "1", "1"],
    ],
)
def test_a_file_that_is_read_in_another_way_raises_one(theirs, tmp_path, wrong):
    process = read(theirs, tmp_path, *wrong)
    assert result(process)["top1_before"] < theirs[2]
    assert "standard deviations off those in its training" in process.stderr
    assert "check --stem, --stride, --shortcut, --mean, --std" in process.stderr


def test_classes_in_another_order_are_noticed(theirs, tmp_path):
    folder, moments, _ = theirs
    state = torch.load(folder / "net.pt", weights_only=True)
    order = torch.arange(20).roll(7)
    state |= {name: state[name][order] for name in ("fc.weight", "fc.bias")}
    torch.save({"net": state}, folder / "order.pt")
    process = read(theirs, tmp_path, file="order.pt")
    assert "with the classes in another order" in process.stderr
    assert "standard deviations" not in process.stderr
    flags = ["--epochs", "1", "--train-images", "256", "--save", tmp_path / "tuned"]
    process = run(
        "finetune.py", "--refine", folder / "order.pt", *DATA, *moments, *flags, cwd=folder
    )
    assert "with the classes in another order" in process.stderr


def test_masks_are_kept_in_training(theirs, tmp_path):
    folder, moments, _ = theirs
    model = load(folder / "ours").network()
    prune.l1_unstructured(model.layer2[0].conv1, "weight", 0.5)
    torch.save(model.state_dict(), folder / "masked.pt")
    flags = ["--epochs", "1", "--train-images", "256", "--save", tmp_path / "tuned"]
    process = run(
        "finetune.py", "--refine", folder / "masked.pt", *DATA, *moments, *flags, cwd=folder
    )
    assert result(process)["method"] == "weight"
    assert re.search(r"1 layers have masks: \d+\.\d % of all weights", process.stderr)
    tuned = load(tmp_path / "tuned").network()
    zero = model.layer2[0].conv1.weight == 0
    assert torch.equal(tuned.layer2[0].conv1.weight == 0, zero)
    flags = [
        "--budget",
        "flops",
        "--epochs",
        "1",
        "--train-images",
        "256",
        "--save",
        tmp_path / "l",
    ]
    process = run("main.py", "--like", folder / "masked.pt", *DATA, *moments, *flags, cwd=folder)
    assert result(process)["control"] == "scratch"


def test_how_a_file_was_read_is_part_of_a_run(theirs, tmp_path):
    result(read(theirs, tmp_path))
    again = read(theirs, tmp_path, "--bn-eps", "0.001")
    assert again.returncode == 2
    assert "--bn-eps was None, is 0.001" in again.stderr


def test_the_stem_of_a_trained_network(tmp_path):
    flags = ["--depth", "18", "--width", "4", "--dataset", "synthetic", "--image-size", "64"]
    train = ["--epochs", "1", "--train-images", "64", "--stem", "imagenet"]
    trained = result(run("main.py", *flags, *train, cwd=tmp_path))
    assert "resnet18w4-imagenet" in trained["checkpoint"]
    pruned = result(run("res50prune.py", *flags, "--stem", "imagenet", cwd=tmp_path))
    assert build(load(tmp_path / pruned["checkpoint"]).spec).conv1.kernel_size == (7, 7)


def test_an_export_reads_a_file_as_a_stage_does(theirs, tmp_path):
    folder, moments, _ = theirs
    flags = ["--format", "torch", "--save", tmp_path / "net.pt2", *DATA, *moments]
    process = run("export.py", folder / "net.pt", *flags, cwd=folder)
    assert result(process)["max_logit_difference"] < 1e-3
    assert "assumed: stem cifar" in process.stderr


def test_any_number_of_blocks_goes_through_the_stages(tmp_path):
    spec = new_spec(20, 20, width=4)
    gone = {"layer1.2", "layer2.2", "layer3.1", "layer3.2"}  # leaves 2 + 2 + 1
    weights = {k: v for k, v in build(spec).state_dict().items() if k[:8] not in gone}
    torch.save(weights, tmp_path / "net.pt")
    flags = [*DATA, "--save", "slim", "--no-eval"]
    result(run("res50prune.py", "--model", "net.pt", *flags, cwd=tmp_path))
    flags = ["--refine", "slim", "--save", "tuned", "--epochs", "1", "--train-images", "256"]
    tuned = result(run("finetune.py", *flags, cwd=tmp_path))
    assert load(tmp_path / "tuned").spec["blocks"] == [2, 2, 1]
    assert tuned["depth"] == 12


def test_recalibration_hides_no_doubt(theirs, tmp_path):
    folder, moments, _ = theirs
    flags = [*DATA, *moments, "--stem", "cifar-pool", "--recalibrate", "--save", tmp_path / "out"]
    flags += ["--epochs", "1", "--train-images", "256"]
    process = run("finetune.py", "--refine", folder / "net.pt", *flags, cwd=folder)
    assert "standard deviations off those in its training" in process.stderr


def test_how_a_file_is_read_means_nothing_without_one(tmp_path):
    process = run("main.py", "--depth", "8", *DATA, "--bn-eps", "0.001", cwd=tmp_path)
    assert process.returncode == 2
    assert "--key and --bn-eps are for a network trained elsewhere" in process.stderr


def test_the_network_as_it_was_is_a_run_to_compare_with(theirs, tmp_path):
    folder, _, top1 = theirs
    pruned = result(read(theirs, tmp_path))
    dense = load(tmp_path / "baseline")
    assert (dense.stage, dense.metrics["top1"]) == ("imported", top1)
    assert torch.equal(
        dense.state_dict["conv1.weight"], load(folder / "ours").state_dict["conv1.weight"]
    )
    train = ["--epochs", "1", "--batch-size", "256", "--save", tmp_path / "tuned"]
    tuned = result(run("finetune.py", "--refine", tmp_path / "out", *DATA, *train, cwd=folder))
    quick = ["--engines", "eager", "--seconds", "0", "--no-memory"]
    runs = [tmp_path / name for name in ("baseline", "out", "tuned")]
    rows = result(run("benchmark.py", *runs, *quick, cwd=folder))["rows"]
    assert [row["top1"] for row in rows] == [top1, pruned["top1"], tuned["top1"]]
    run("report.py", tmp_path, "--save", tmp_path / "report", cwd=folder)
    lines = (tmp_path / "report/report.md").read_text().splitlines()
    line = next(line for line in lines if "| l1 |" in line)
    assert f"{tuned['top1'] - top1:.2f}" in line


def test_a_run_in_the_way_of_the_network_as_it_was_stops_nothing(theirs, tmp_path):
    folder, _, _ = theirs
    (tmp_path / "baseline").mkdir()
    for other in (folder / "ours/model.pt", folder / "net.pt"):  # one of ours, one that is not
        mine = tmp_path / "baseline/model.pt"
        shutil.copy(other, mine)
        process = read(theirs, tmp_path, "--force")
        assert "did not become a run" in process.stderr
        assert result(process)["stage"] == "pruned"
        assert mine.read_bytes() == other.read_bytes()


def test_a_network_that_is_read_in_another_way_replaces_what_it_was_by_force(theirs, tmp_path):
    result(read(theirs, tmp_path, "--mean", "0", "0", "0", "--std", "1", "1", "1"))
    again = result(read(theirs, tmp_path, "--force"))
    assert load(tmp_path / "baseline").metrics["top1"] == again["top1_before"] == theirs[2]
    folder = theirs[0]
    torch.save({"w": load(folder / "ours").state_dict}, tmp_path / "copy.pt")  # of another hash
    process = read(theirs, tmp_path, "--force", file=tmp_path / "copy.pt")
    assert "baseline holds another network" in process.stderr


def test_a_run_may_be_called_baseline_itself(theirs, tmp_path):
    folder, moments, top1 = theirs
    flags = [*DATA, *moments, "--save", tmp_path / "baseline"]
    assert result(run("res50prune.py", "--model", "net.pt", *flags, cwd=folder))
    assert load(tmp_path / "baseline").stage == "pruned"
    assert load(tmp_path / "imported").metrics["top1"] == top1


@pytest.mark.parametrize(
    "wrong", [["--stem", "imagenet"], ["--shortcut", "B"], ["--key", "nope"], ["--bn-eps", "2"]]
)
def test_what_a_file_contradicts_is_a_wrong_command_line(theirs, tmp_path, wrong):
    process = read(theirs, tmp_path, *wrong)
    assert process.returncode == 2
    assert wrong[0] in process.stderr.splitlines()[-1]


def test_a_teacher_is_for_the_images_of_its_student(theirs, tmp_path):
    folder, _, _ = theirs
    result(read(theirs, tmp_path))
    tune = ["finetune.py", "--refine", tmp_path / "out", "--save", tmp_path / "taught"]
    tune += ["--epochs", "1", "--train-images", "64", "--teacher", "net.pt"]
    assert result(run(*tune, cwd=folder))["stage"] == "finetuned"


def test_a_file_is_timed_as_a_stage_reads_it(theirs):
    folder, _, _ = theirs
    flags = ["--image-size", "16", "--stem", "cifar-pool", "--engines", "eager", "--seconds", "0"]
    sizes = run("benchmark.py", "ours", "net.pt", cwd=folder)
    assert "net.pt: assumed: images of 32 pixels (--image-size)" in sizes.stderr
    assert "images of different sizes: ours/model.pt 16, net.pt 32" in sizes.stderr
    process = run("benchmark.py", "ours", "net.pt", *flags, "--no-memory", cwd=folder)
    ours, pooled = result(process)["rows"]
    assert pooled["macs"] < ours["macs"]
    assert "net.pt: " in process.stderr


def test_a_stage_looks_for_images_where_its_input_had_them(tmp_path, tree):
    folder = tmp_path / "images"
    shutil.copytree(tree, folder, ignore=shutil.ignore_patterns(".*"))
    net = ["--depth", "8", "--width", "2", "--dataset", "folder", "--image-size", "8"]
    train = ["--epochs", "1", "--batch-size", "8"]
    result(run("main.py", *net, *train, "--data", folder, "--save", "dense", cwd=tmp_path))
    result(run("res50prune.py", "--model", "dense", "--save", "slim", cwd=tmp_path))
    flags = ["--format", "torch", "--save", "slim.pt2"]
    exported = result(run("export.py", "slim", *flags, cwd=tmp_path))
    assert exported["images"] == 18
    folder.rename(tmp_path / "elsewhere")
    missing = run("export.py", "slim", *flags, cwd=tmp_path)
    assert missing.returncode == 1
    assert "--data DIR" in missing.stderr
    assert not (tmp_path / "data").exists()


def test_an_export_downloads_nothing(tmp_path):
    network = build(new_spec(8, 10, width=2))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    flags = ["--dataset", "cifar10", "--format", "torch"]
    process = run("export.py", "net.pt", *flags, cwd=tmp_path)
    assert process.returncode == 1
    assert "data: no cifar10 in it; --data DIR says where the images are" in process.stderr
    assert not (tmp_path / "data").exists()


def test_how_images_are_read_is_kept_through_the_stages(tmp_path, tree):
    """Classes that are numbers, in an order that both kinds of sorting give, and odd shapes."""
    images = tmp_path / "images"
    for part in ("train", "test"):
        for number, name in enumerate(("ant", "bee", "cat")):
            shutil.copytree(tree / part / name, images / part / str(number))
    net = ["--depth", "8", "--width", "2", "--dataset", "folder", "--image-size", "8"]
    flags = [*net, "--data", images, "--resize", "crop", "--class-order", "numbers"]
    train = ["--epochs", "1", "--batch-size", "8"]
    dense = result(run("main.py", *flags, *train, cwd=tmp_path))
    assert "resnet8w2-crop" in dense["checkpoint"]
    result(run("res50prune.py", *flags, cwd=tmp_path))
    result(run("finetune.py", *flags, *train, cwd=tmp_path))
    (cache,) = images.glob(".*")
    written = cache.stat().st_mtime_ns
    slim = ["--model", dense["checkpoint"], "--save", "slim"]
    result(run("res50prune.py", *slim, cwd=tmp_path))  # crops, too
    assert cache.stat().st_mtime_ns == written
    other = run("res50prune.py", *slim, "--resize", "squash", cwd=tmp_path)
    assert "--resize squash contradicts" in other.stderr
    images.rename(tmp_path / "moved")
    again = run("res50prune.py", *slim, cwd=tmp_path)  # is done, and needs no images
    assert result(again)["stage"] == "pruned"


def test_numbered_classes_keep_their_order(tmp_path, tree):
    images = tmp_path / "images"
    for part in ("train", "test"):
        for number, name in (("2", "ant"), ("10", "bee"), ("1", "cat")):
            shutil.copytree(tree / part / name, images / part / number)
    net = ["--depth", "8", "--width", "2", "--dataset", "folder", "--image-size", "8"]
    flags = [*net, "--data", images, "--class-order", "numbers"]
    result(run("main.py", *flags, "--epochs", "1", "--batch-size", "8", cwd=tmp_path))
    pruned = result(run("res50prune.py", *net, "--data", images, cwd=tmp_path))
    assert load(tmp_path / pruned["checkpoint"]).data["classes"] == ["1", "2", "10"]
    other = run("res50prune.py", *net, "--data", images, "--class-order", "strings", cwd=tmp_path)
    assert "--class-order strings contradicts" in other.stderr


def test_flags_for_class_folders_mean_nothing_without_them(tmp_path):
    process = run("main.py", "--depth", "8", *DATA, "--resize", "crop", cwd=tmp_path)
    assert process.returncode == 2
    assert "--resize and --class-order are for class folders" in process.stderr


def test_how_a_file_was_read_may_be_said_again(theirs, tmp_path):
    folder, moments, _ = theirs
    result(read(theirs, tmp_path, "--bn-eps", "0.001"))
    tune = ["finetune.py", "--refine", tmp_path / "out", "--save", tmp_path / "tuned"]
    tune += ["--epochs", "1", "--train-images", "64"]
    result(run(*tune, *DATA, *moments, "--bn-eps", "0.001", cwd=folder))
    other = run(*tune, *DATA, *moments, "--bn-eps", "0.01", cwd=folder)
    assert "--bn-eps 0.01 contradicts" in other.stderr


def test_reading_flags_mean_nothing_to_our_own_networks(theirs):
    process = run("benchmark.py", "ours", "--stem", "cifar-pool", cwd=theirs[0])
    assert process.returncode == 2
    assert "--stem is for a network trained elsewhere" in process.stderr
