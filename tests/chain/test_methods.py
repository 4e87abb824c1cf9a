"""Every way of pruning through the commands, the controls, and those of a plugin."""

import json
import shutil
from dataclasses import fields

import pytest
import torch

import finetune
import main
import res50prune
from models import cost_of, new_spec, spec_of
from pruning import METHODS, PruningConfig, Task, name_of, resolve
from pruning.config import flag
from tests.command import result, run
from tests.conftest import lively
from utils import checkpoint as checkpoints
from utils import cli
from utils.config import NetworkConfig, Recipe
from utils.files import sha256
from utils.run import WORDS

NET = ["--depth", "26", "--arch", "resnet_de", "--width", "4"]
SHALLOW = ["--depth", "8", "--width", "4"]
DATA = ["--dataset", "synthetic", "--image-size", "16"]
TRAIN = ["--epochs", "2", "--train-images", "512", "--batch-size", "64"]
FOLDER = "runs/synthetic/resnet_de26w4/seed0"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    result(run("main.py", *NET, *DATA, *TRAIN, cwd=folder))
    return folder


@pytest.fixture
def work(base, tmp_path):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    return tmp_path


def log(work, name):
    return [json.loads(line) for line in (work / FOLDER / name / "metrics.jsonl").open()]


def test_soft(work):
    flags = [*NET, *DATA, "--method", "soft", "--ratio", "0.5"]
    pruned = result(run("res50prune.py", *flags, cwd=work))
    tuned = result(run("finetune.py", *flags, *TRAIN, cwd=work))
    assert pruned["params"] == tuned["params"]  # the figures of the cut network, from the start
    checkpoint = checkpoints.load(work / FOLDER / "soft-0.5/finetuned")
    model = checkpoint.network()
    assert sum(p.numel() for p in model.parameters()) == tuned["params"]
    rows = log(work, "soft-0.5/finetuned")
    assert rows[-1]["top1"] == tuned["top1"]
    assert rows[0]["pruned_ratio"] == pytest.approx(0.5, abs=0.01)
    assert "pruned_ratio" not in rows[1]  # cut at half-time
    assert rows[0].keys() >= {"flipped", "regrown"}
    again = result(run("res50prune.py", "--model", tuned["checkpoint"], "--ratio", "0", cwd=work))
    assert again["top1_before"] == tuned["top1"]  # the file computes what was reported


def test_a_diverged_network_is_named_before_it_is_cut(tmp_path):
    size = ["--dataset", "synthetic", "--image-size", "8", "--train-images", "64"]
    how = ["--method", "soft", "--ratio", "0.5", "--lr", "1e6", "--epochs", "2", "--batch-size", 32]
    done = run(
        "main.py", "--depth", "20", "--width", "4", *size, *how, "--threads", 1, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("; try a lower --lr, with --force")


def test_the_literal_soft(work):
    flags = [*NET, *DATA, "--method", "soft", "--schedule", "he2018", "--ratio", "0.5"]
    result(run("res50prune.py", *flags, cwd=work))
    tuned = result(run("finetune.py", *flags, *TRAIN, cwd=work))
    rows = log(work, "soft-0.5-he2018/finetuned")
    assert rows[-1]["top1"] == tuned["top1"]
    assert rows[-1].keys() >= {"threshold", "flipped", "regrown", "overlap", "top1_unmasked"}


def test_soft_from_scratch(work):
    flags = [*NET, *DATA, *TRAIN, "--method", "soft", "--ratio", "0.5", "--threshold", "global"]
    output = result(run("main.py", *flags, cwd=work))
    assert output["stage"] == "scratch"
    assert "soft-0.5-global/scratch" in output["checkpoint"]
    dense = json.loads((work / FOLDER / "baseline/result.json").read_text())
    assert output["macs"] < dense["macs"]


@pytest.mark.parametrize("method", ["l1", "weight"])
def test_pruning_in_one_training_is_gradual(work, method):
    flags = ["--method", method, "--ratio", "0.5", "--epochs", "4"]
    process = run("main.py", *NET, *DATA, *TRAIN, *flags, cwd=work)
    output = result(process)
    cut = method == "l1" or output["channels_removed"] > 0  # idle ones, of weights
    assert ("largest logit difference" in process.stderr) == cut
    assert f"{method}-0.5-gradual/scratch" in output["checkpoint"]
    assert output["pruning"][0]["gradual"]
    assert output["nonzero_params"] < 0.75 * output["dense_params"]
    again = run("main.py", *NET, *DATA, *TRAIN, *flags, "--gradual", cwd=work)
    assert result(again) == output


@pytest.mark.parametrize("how", [["--ratio", "0.9"], ["--ratio", "0.9", "--gradual"]])
def test_weight(work, how):
    flags = [*NET, *DATA, "--method", "weight", *how]
    result(run("res50prune.py", *flags, cwd=work))
    tuned = result(run("finetune.py", *flags, *TRAIN, cwd=work))
    checkpoint = checkpoints.load(work / tuned["checkpoint"])
    masks, state = checkpoint.pruning.state.masks, checkpoint.state_dict
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert not any(state[f"{name}.weight"][~mask].any() for name, mask in masks.items())
    others = sum(
        v.numel() for k, v in state.items() if "num_batches" not in k and "running" not in k
    )
    others -= sum(mask.numel() for mask in masks.values())
    assert tuned["nonzero_params"] <= kept + others
    assert (
        tuned["nonzero_params"]
        < 0.25 * json.loads((work / FOLDER / "baseline/result.json").read_text())["params"]
    )
    assert tuned["effective_macs"] < 0.5 * tuned["macs"]
    assert "channels_removed" in tuned


def test_pruning_again_refers_to_what_is_left_and_targets_to_the_start(work):
    flags = [*NET, *DATA]
    dense = json.loads((work / FOLDER / "baseline/result.json").read_text())
    first = result(run("res50prune.py", *flags, "--ratio", "0.3", cwd=work))
    again = ["res50prune.py", "--model", first["checkpoint"]]
    second = result(run(*again, "--target-macs", "0.4", cwd=work))
    assert second["macs"] / dense["macs"] == pytest.approx(0.4, abs=0.03)
    assert "l1-0.3+l1-macs0.4/pruned" in second["checkpoint"]
    history = checkpoints.load(work / second["checkpoint"]).history
    assert [entry["stage"] for entry in history] == ["baseline", "pruned", "pruned"]
    masked = result(run(*again, "--method", "weight", "--ratio", "0.5", cwd=work))
    third = run("res50prune.py", "--model", masked["checkpoint"], "--ratio", "0.3", cwd=work)
    checkpoint = checkpoints.load(work / result(third)["checkpoint"])
    for name, mask in checkpoint.pruning.state.masks.items():  # cut along with the weights
        assert mask.shape == checkpoint.state_dict[f"{name}.weight"].shape
    own = run(*again, "--save", f"{FOLDER}/l1-0.3/pruned", "--force", cwd=work)
    assert own.returncode == 2
    assert "input" in own.stderr


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """A network with few groups of channels."""
    folder = tmp_path_factory.mktemp("shallow")
    result(run("main.py", *SHALLOW, *DATA, *TRAIN, cwd=folder))
    return folder


def test_sensitivity_is_measured_once_and_used(shallow):
    work, flags = shallow, [*SHALLOW, *DATA, "--criterion", "l2", "--train-images", "32"]
    output = result(run("res50prune.py", *flags, "--sensitivity", cwd=work))
    assert set(output["drops"]["layer1.0.conv1"]) == {"0.1", "0.3", "0.5", "0.7", "0.9"}
    heat_map = (work / output["file"]).with_suffix(".png")
    assert heat_map.read_bytes().startswith(b"\x89PNG")
    result(run("res50prune.py", *flags, "--sensitivity", "--save", "elsewhere", cwd=work))
    assert {file.suffix for file in (work / "elsewhere/sensitivity").iterdir()} == {".json", ".png"}
    # An interrupted measurement goes on, and its picture is drawn.
    some = dict(list(output["drops"].items())[1:])
    (work / output["file"]).write_text(json.dumps({**output, "drops": some}))
    heat_map.unlink()
    again = run("res50prune.py", *flags, "--sensitivity", cwd=work)
    assert "sensitivities of 1 groups written" in again.stderr
    assert result(again)["drops"] == output["drops"]
    assert heat_map.is_file()
    damaged = {group: {} for group in output["drops"]}
    (work / output["file"]).write_text(json.dumps({**output, "drops": damaged}))
    again = run("res50prune.py", *flags, "--sensitivity", cwd=work)
    assert result(again)["drops"] == output["drops"]
    pruned = run("res50prune.py", *flags, "--allocation", "sensitivity", cwd=work)
    assert "sensitivities read from" in pruned.stderr
    assert result(pruned)["macs"] < result(pruned)["dense_macs"]
    assert "l1-0.3-l2-sensitivity" in result(pruned)["checkpoint"]


def test_a_latency_target_is_met_on_the_clock():
    """With a clock that counts MACs, so that the answer is known; a real one is noisy."""
    model = lively(new_spec(18, 10, width=16))
    dense = cost_of(spec_of(model))
    method = METHODS["l1"](resolve({"target_latency": 0.6, "scope": "all"}))

    def clock(network):
        return cost_of(spec_of(network)).macs / dense.macs

    pruned = method.prune(model, Task(dense, latency=clock))
    assert clock(pruned.network) == pytest.approx(0.6, abs=0.03)
    impossible = METHODS["l1"](resolve({"target_latency": 1e-6}))
    with pytest.raises(ValueError, match="cannot be reached"):
        impossible.prune(model, Task(dense, latency=clock))


def test_latency_on_the_real_clock(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.setattr("measurement.timing.PATIENCE", 0)
    flags = [*NET, *DATA, "--scope", "all", "--batch-size", "256", "--no-eval"]
    parser = res50prune.build_parser()
    # From about 0.45 to 1 can be reached, but one look at the clock may be off by a fifth.
    output = res50prune.main(parser.parse_args([*flags, "--target-latency", "0.7"]))
    assert 0.5 < output["latency_share"] < 2
    assert output["macs"] < output["dense_macs"]


@pytest.mark.parametrize("how", [["l1"], ["soft"], ["weight"], ["weight", "--gradual"]])
def test_controls_and_what_is_finished_stays_finished(work, how):
    flags = [*NET, *DATA, "--ratio", "0.6", "--method", *how]
    pruned = result(run("res50prune.py", *flags, cwd=work))
    unfinished = how in (["soft"], ["weight", "--gradual"])
    if unfinished:
        for script, flag in (("main.py", "--like"), ("res50prune.py", "--model")):
            refused = run(script, flag, pruned["checkpoint"], "--save", "x", cwd=work)
            assert refused.returncode == 2
            assert "finetune.py; run that first" in refused.stderr
    tuned = result(run("finetune.py", *flags, *TRAIN, cwd=work))
    again = ["finetune.py", "--refine", tuned["checkpoint"], "--save", "again", *TRAIN]
    further = result(run(*again, cwd=work))
    assert further["params"] <= tuned["params"]
    assert further["nonzero_params"] <= tuned["nonzero_params"]
    assert further["nonzero_params"] > 0.9 * tuned["nonzero_params"]

    like = result(run("main.py", "--like", tuned["checkpoint"], cwd=work))
    assert like["stage"] == "like"
    assert like["nonzero_params"] <= tuned["nonzero_params"]
    if how[0] != "weight":  # there, more channels may turn out idle
        assert like["params"] == tuned["params"]
    assert like["arguments"]["recipe"]["epochs"] == 2  # those of the dense network
    assert like["arguments"]["recipe"]["batch_size"] == 64
    assert like["control"] == "scratch"


def test_a_control_of_equal_operations(work):
    slim = result(run("res50prune.py", *NET, *DATA, "--ratio", "0.6", cwd=work))
    flops = result(run("main.py", "--like", slim["checkpoint"], "--budget", "flops", cwd=work))
    dense = json.loads((work / FOLDER / "baseline/result.json").read_text())
    assert len(log(work, "l1-0.6/like-flops")) == round(2 * dense["macs"] / slim["macs"])
    assert flops["macs"] == slim["macs"]


def test_weights_pruned_while_training(work):
    flags = ["--method", "weight", "--gradual", "--ratio", "0.8"]
    output = result(run("main.py", *NET, *DATA, *TRAIN, *flags, cwd=work))
    assert output["nonzero_params"] < 0.4 * output["params"]


def test_what_pruning_cut_decides_the_learning_rate_of_the_recovery(work):
    """Not what an earlier one had cut: a little off a sparse network is still little."""
    flags = [*NET, *DATA]
    masked = result(run("res50prune.py", *flags, "--method", "weight", "--ratio", "0.9", cwd=work))
    little = ["res50prune.py", "--model", masked["checkpoint"], "--ratio", "0.1", "--save", "less"]
    result(run(*little, cwd=work))
    assert 0 < checkpoints.load(work / "less").pruning.share_cut < 0.3


def test_how_a_network_trained_elsewhere_was_trained_is_not_known(work):
    torch.save(lively(new_spec(20, 20, width=4)).state_dict(), work / "theirs.pt")
    result(run("res50prune.py", *DATA, "--model", "theirs.pt", "--save", "slim", cwd=work))
    result(run("finetune.py", "--refine", "slim", "--save", "tuned", *TRAIN, cwd=work))
    again = ["finetune.py", "--refine", "tuned", "--save", "more", "--recipe", "lr-rewind"]
    refused = run(*again, cwd=work)
    assert refused.returncode == 2
    assert "does not tell" in refused.stderr


def test_masks_outlive_soft_pruning(work):
    flags = [*NET, *DATA]
    masked = result(run("res50prune.py", *flags, "--method", "weight", "--ratio", "0.8", cwd=work))
    soft = ["--method", "soft", "--ratio", "0.3", "--save", "soft"]
    result(run("res50prune.py", "--model", masked["checkpoint"], *soft, cwd=work))
    tuned = result(run("finetune.py", "--refine", "soft", "--save", "tuned", *TRAIN, cwd=work))
    assert tuned["nonzero_params"] <= masked["nonzero_params"]
    assert tuned["params"] < masked["params"]


def test_recipes(work):
    flags = [*NET, *DATA, "--ratio", "0.4"]
    result(run("res50prune.py", *flags, cwd=work))
    one = ["--epochs", "1", "--train-images", "256"]
    literal = result(run("finetune.py", *flags, *one, "--recipe", "li2017", cwd=work))
    told = literal["arguments"]["recipe"]
    assert (told["weight_decay"], told["label_smoothing"], told["momentum"]) == (1e-4, 0, 0.9)
    assert literal["arguments"]["recipe"]["lr"] == 0.001
    assert literal["arguments"]["recipe"]["lr_schedule"] == "constant"
    rewound = result(run("finetune.py", *flags, *one, "--recipe", "lr-rewind", cwd=work))
    assert rewound["arguments"]["recipe"]["lr_start"] == 0.5  # the second of two epochs
    (row,) = log(work, "l1-0.4/finetuned-lr-rewind")
    assert row["lr"] == pytest.approx(0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 7))))
    teacher = ["--teacher", f"{FOLDER}/baseline", "--recalibrate"]
    taught = result(run("finetune.py", *flags, *one, *teacher, cwd=work))
    plain = result(run("finetune.py", *flags, *one, cwd=work))
    only = result(run("finetune.py", *flags, *one, "--recalibrate", cwd=work))
    assert len({taught["loss"], plain["loss"], only["loss"]}) == 3
    assert "l1-0.4/finetuned-taught-bn" in taught["checkpoint"]
    assert 0 < taught["top1_recalibrated"] <= 100


@pytest.mark.parametrize("how", [["soft"], ["l1", "--gradual"], ["weight", "--gradual"]])
def test_a_killed_pruning_resumes_with_the_same_bits(work, monkeypatch, how):
    """Masks, kept channels and the memory of earlier epochs are part of what is resumed."""
    monkeypatch.chdir(work)
    flags = [*NET, *DATA, "--ratio", "0.5", "--method", *how]
    res50prune.main(res50prune.build_parser().parse_args(flags))
    tune = [*flags, *TRAIN, "--epochs", "4"]

    class Killed(Exception):
        pass

    def checkpoint(save):
        finetune.main(finetune.build_parser().parse_args([*tune, "--save", save]))
        return checkpoints.load(work / save)

    whole = checkpoint("whole")
    steps = iter(range(100))

    class Dying(METHODS[how[0]]):
        def on_step(self, *rest):
            if next(steps) == 20:  # in the third epoch
                raise Killed
            super().on_step(*rest)

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, how[0], Dying)
        with pytest.raises(Killed):
            checkpoint("cut")
    resumed = checkpoint("cut")
    for key, tensor in whole.state_dict.items():
        assert torch.equal(tensor, resumed.state_dict[key]), key
    assert whole.pruning.as_dict().keys() == resumed.pruning.as_dict().keys()
    for name, mask in whole.pruning.state.masks.items():
        assert torch.equal(mask, resumed.pruning.state.masks[name])
    skipped = ("seconds", "images_per_second")
    logs = [
        [{k: v for k, v in json.loads(line).items() if k not in skipped} for line in text]
        for text in ((work / name / "metrics.jsonl").open() for name in ("whole", "cut"))
    ]
    assert logs[0] == logs[1]


PLUGIN = """
from dataclasses import dataclass
from pruning import METHODS, Method, Pruned, State
from pruning.criteria import CRITERIA, by_filter

@dataclass
class Noted(State):
    note: int = 0

class Mine(Method):
    State = Noted

    def prune(self, model, task):
        self.state.note = 7
        return Pruned(model, model, model, 0.0, [("everything", 1, 1, "")])

    def on_step(self, model, optimizer, step, steps):
        open("steps", "a").write(f"{self.state.note} {step} {steps}\\n")

METHODS["mine"] = Mine
CRITERIA["largest"] = by_filter(lambda w: w.abs().amax(1))
"""


@pytest.fixture
def plugin(work):
    (work / "mine.py").write_text(PLUGIN)
    return ["--plugin", "mine.py"]


def test_a_method_of_a_plugin_goes_through_the_stages(work, plugin):
    flags = [*NET, *DATA, "--method", "mine"]
    pruned = result(run("res50prune.py", *flags, *plugin, cwd=work))
    tuned = result(run("finetune.py", *flags, *TRAIN, *plugin, cwd=work))
    assert tuned["method"] == "mine"
    steps = (work / "steps").read_text().splitlines()
    assert steps == [f"7 {step} 16" for step in range(16)]
    # Without it the network can be measured, but its pruning cannot go on.
    quick = ["--engines", "eager", "--seconds", "0", "--no-memory"]
    assert result(run("benchmark.py", tuned["checkpoint"], *quick, cwd=work))["rows"]
    refused = run("finetune.py", "--refine", pruned["checkpoint"], "--save", "x", *TRAIN, cwd=work)
    assert refused.returncode == 2
    assert "method mine is not known here; --plugin FILE may bring it" in refused.stderr


def test_a_criterion_of_a_plugin_ranks_filters(work, plugin):
    flags = [*NET, *DATA, "--criterion", "largest", "--ratio", "0.5"]
    result(run("res50prune.py", *flags, *plugin, cwd=work))
    dense = checkpoints.load(work / FOLDER / "baseline").network()
    weight = dense.layer1[0].conv1.weight
    kept = weight.abs().amax((1, 2, 3)).topk(2).indices.sort().values
    slim = checkpoints.load(work / FOLDER / "l1-0.5-largest/pruned").network()
    assert torch.equal(slim.layer1[0].conv1.weight, weight[kept])
    assert "invalid choice: 'largest'" in run("res50prune.py", *flags, cwd=work).stderr


def test_a_criterion_whose_plugin_is_not_given_is_missed_before_the_training(work, plugin):
    flags = [*NET, *DATA, "--criterion", "largest", "--gradual", "--ratio", "0.5"]
    pruned = result(run("res50prune.py", *flags, *plugin, cwd=work))
    tune = ["finetune.py", "--refine", pruned["checkpoint"], "--save", "x", *TRAIN]
    refused = run(*tune, cwd=work)
    assert refused.returncode == 2
    assert "criterion largest is not known here; --plugin FILE may bring it" in refused.stderr
    result(run(*tune, *plugin, cwd=work))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("none.py", None, "--plugin none.py: no such Python file"),
        ("mine.txt", "", "--plugin mine.txt: no such Python file"),
        ("end.py", "import sys; print('hello'); sys.exit()", "--plugin end.py: SystemExit"),
        ("bad.py", "import nothing_such", "--plugin bad.py: ModuleNotFoundError: No module named"),
    ],
)
def test_a_plugin_that_does_not_load_is_one_line(tmp_path, file, content, message):
    if content is not None:
        (tmp_path / file).write_text(content)
    process = run("res50prune.py", "--plugin", file, cwd=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert len([line for line in process.stderr.splitlines() if line != "hello"]) == 1
    assert not process.stdout


def test_another_plugin_makes_another_run(work, plugin):
    flags = [*NET, *DATA, "--criterion", "largest", "--ratio", "0.5", *plugin]
    result(run("res50prune.py", *flags, cwd=work))
    result(run("res50prune.py", *flags, cwd=work))
    (work / "mine.py").write_text(PLUGIN.replace(".amax(1)", ".amin(1)"))
    other = run("res50prune.py", *flags, cwd=work)
    assert other.returncode == 2
    assert "--plugin was " in other.stderr


def test_run_folders_are_named_by_what_is_not_the_default():
    parser = cli.parser("")
    cli.add_pruning_flags(parser)

    def name(*flags):
        return name_of([resolve(cli.pruning_flags(parser.parse_args(flags)))])

    assert name() == "l1-0.3"
    assert name("--ratio", "0.6", "--criterion", "l1") == "l1-0.6"
    assert name("--method", "soft", "--criterion", "gate", "--ratio", "0.9") == "soft-0.9"
    assert name("--method", "soft", "--schedule", "asymptotic") == "soft-0.3-asymptotic"
    assert name("--gradual", "--ramp", "0", "0.5") == "l1-0.3-gradual-ramp0-0.5"
    assert name("--method", "weight", "--allocation", "layer") == "weight-0.3-layer"
    assert name("--target-macs", "0.5") == "l1-macs0.5"
    assert name("--target-macs", "0.5", "--scope", "inner") == "l1-macs0.5-inner"
    assert name("--ratio", "0.6", "--allocation", "cost") == "l1-0.6-cost"
    assert name("--ratio", "0.6,0.3,0.1", "--skip", "layer1.7") == "l1-0.6,0.3,0.1-skiplayer1.7"
    assert name("--skip", "fc", "conv1", "--method", "weight") == "weight-0.3-skipconv1,fc"
    assert name("--skip", "conv1", "fc", "conv1", "--method", "weight") == "weight-0.3-skipconv1,fc"
    assert name("--method", "filters", "--criterion", "bn") == "l1-0.3-bn"
    assert name("--method", "unstructured", "--ratio", "0.9") == "weight-0.9"
    assert name("--allocation", "global", "--min-keep", "1") == "l1-0.3-global-min1"


@pytest.mark.parametrize("script", [main, res50prune, finetune])
def test_what_makes_a_run_is_what_its_flags_are_called(script):
    """So that an error about a difference names flags that exist."""
    flags = {o for action in script.build_parser()._actions for o in action.option_strings}
    configs = {
        main: [NetworkConfig, PruningConfig, Recipe],
        res50prune: [NetworkConfig, PruningConfig],
        finetune: [NetworkConfig, Recipe],
    }[script]
    names = {field.name for config in configs for field in fields(config)} - {"blocks"}
    if script is main:  # what only fine-tuning varies
        names -= {"teacher", "temperature", "teacher_weight", "recalibrate"}
    for name in (*names, "precision", *(["no_eval"] if script is res50prune else [])):
        assert {*WORDS.get(name, flag(name)).split(" or ")} & flags, name


def test_a_batch_that_nothing_looks_at_makes_no_other_run(work):
    flags = [*NET, *DATA, "--ratio", "0.5"]
    first = run("res50prune.py", *flags, cwd=work)
    again = run("res50prune.py", *flags, "--batch-size", "32", cwd=work)
    assert result(again) == result(first)


def test_what_differs_is_told_in_flags(work):
    flags = [*NET, *DATA, "--ratio", "0.4"]
    result(run("res50prune.py", *flags, cwd=work))
    tune = ["finetune.py", *flags, "--epochs", "1", "--train-images", "256", "--save", "tuned"]
    result(run(*tune, "--teacher", f"{FOLDER}/baseline", cwd=work))
    other = run(*tune, "--lr", "0.5", cwd=work)
    assert other.returncode == 2
    told = other.stderr.splitlines()[-1]
    assert "--teacher was " in told
    assert "--lr was " in told
    assert "hash" not in told
    assert "name" not in told


def test_a_network_trained_elsewhere_can_teach(work):
    flags = [*NET, *DATA, "--ratio", "0.3"]
    result(run("res50prune.py", *flags, cwd=work))
    torch.save(lively(new_spec(20, 20, width=4)).state_dict(), work / "theirs.pt")
    one = ["--epochs", "1", "--train-images", "256", "--teacher", "theirs.pt"]
    taught = result(run("finetune.py", *flags, *one, cwd=work))
    assert taught["arguments"]["recipe"]["teacher"] == sha256(work / "theirs.pt")


def test_the_control_is_compiled_only_if_asked(work, monkeypatch):
    file = work / FOLDER / "baseline/model.pt"
    content = torch.load(file, weights_only=True)
    content["history"][0]["arguments"]["recipe"]["compile"] = True
    torch.save(content, file)
    monkeypatch.chdir(work)
    given = vars(main.build_parser().parse_args(["--like", "x"]))
    made = {"recipe": content["history"][0]["arguments"]["recipe"], "network": {}}
    original = checkpoints.load(file)
    assert original.trained_with()["recipe"] == made["recipe"]
    assert not main.resolve_training(given, original)[1].compile


def test_runs_of_a_version_with_fewer_options_are_still_done(work):
    flags = [*NET, *DATA, "--ratio", "0.3"]
    output = result(run("res50prune.py", *flags, cwd=work))
    file = (work / output["checkpoint"]).with_name("result.json")
    content = json.loads(file.read_text())
    for name in ("refit", "ramp"):
        del content["arguments"]["pruning"][name]
    file.write_text(json.dumps(content))
    assert result(run("res50prune.py", *flags, cwd=work))["top1"] == output["top1"]


def test_a_cut_while_training_needs_no_momentum(work):
    flags = ["--method", "soft", "--ratio", "0.5", "--momentum", "0"]
    output = result(run("main.py", *NET, *DATA, *TRAIN, *flags, cwd=work))
    assert output["params"] < output["dense_params"]


def test_a_network_pruned_while_trained_has_recovered(work):
    flags = ["--method", "soft", "--ratio", "0.5"]
    output = result(run("main.py", *NET, *DATA, *TRAIN, *flags, cwd=work))
    checkpoint = checkpoints.load(work / output["checkpoint"])
    assert finetune.default_recipe(checkpoint).lr == 0.01


def test_a_training_that_prunes_rounds_a_wide_network():
    given = {"method": "l1", "target_macs": 0.5}
    assert main.pruning_step(given, 0, NetworkConfig(depth=50)).round_to == 16
    assert main.pruning_step(given, 0, NetworkConfig(depth=20)).round_to is None


def test_a_subset_of_the_images_has_sensitivities_of_its_own(shallow):
    flags = [*SHALLOW, *DATA, "--sensitivity"]
    result(run("res50prune.py", *flags, "--train-images", "32", cwd=shallow))
    again = run("res50prune.py", *flags, "--train-images", "48", cwd=shallow)
    assert "written to" in again.stderr


def test_a_stage_does_not_replace_what_it_reads(work):
    flags = [*NET, *DATA, "--ratio", "0.3"]
    result(run("res50prune.py", *flags, cwd=work))
    teacher = f"{FOLDER}/baseline"
    own = ["--teacher", teacher, "--save", teacher, "--force"]
    refused = run("finetune.py", *flags, *TRAIN, *own, cwd=work)
    assert refused.returncode == 2
    assert "holds an input of this stage" in refused.stderr
    assert checkpoints.load(work / teacher).stage == "baseline"


def test_masks_are_not_drawn_from_weights_that_know_nothing(work):
    flags = ["--method", "weight", "--pattern", "2:4", "--save", "out"]
    refused = run("main.py", *NET, *DATA, *TRAIN, *flags, cwd=work)
    assert refused.returncode == 2
    assert "res50prune.py" in refused.stderr
    assert not (work / "out").exists()
