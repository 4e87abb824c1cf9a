"""From run folders to cells of seeds, and what is said of the rest."""

import csv
import io
import json

import pytest

from reporting import plots, tables
from reporting.collect import collect, machines
from reporting.summary import answers
from tests.reporting.conftest import NETWORK, SHAPE, cell, edit, write


def test_runs_become_cells(study):
    found = collect([study])
    assert [c.label for c in found.cells] == [
        *("dense", "l1 0.3", "l1 0.6", "l1 from scratch 0.6", "l1 random 0.6"),
        *("soft 0.6", "weight 0.6"),
    ]
    l1 = cell(found, "l1 0.6")
    assert l1.mean("top1") == 66.5
    assert l1.spread("top1") == pytest.approx(0.5**0.5)
    assert cell(found, "soft 0.6").spread("top1") is None
    assert [c.label for c in found.cells if c.first.control] == [
        *("l1 from scratch 0.6", "l1 random 0.6"),
    ]
    assert found.engine(NETWORK) == "fused bf16 on a processor, 2 threads"
    assert [run.stage for run in found.lineage(l1.first)] == ["baseline", "pruned", "finetuned"]


def test_what_is_missing_is_listed(study):
    seed = study / "cifar100/resnet20/seed0"
    write(seed / "l1-0.9/pruned", "pruned", "l1-0.9", share=0.1)
    (seed / "soft-0.9/finetuned").mkdir(parents=True)
    (seed / "soft-0.9/finetuned/metrics.jsonl").write_text('{"epoch": 1, "top1": 1.0}\n')
    (seed / "l1-0.3/finetuned/result.json").write_text("{")
    (seed / "weight-0.6/finetuned/benchmark.json").unlink()
    write(seed / "z-again", "finetuned", "soft-0.6", share=0.4, recipe="default")
    tuned = seed / "l1-0.6-random/finetuned/result.json"
    tuned.write_text(tuned.read_text().replace('"epochs": 5', '"epochs": 40'))
    told = "\n".join(collect([study]).problems)
    for line in (
        "l1-0.9/pruned: pruned, but not fine-tuned",
        "soft-0.9/finetuned: unfinished, 1 epochs so far",
        "l1-0.3/finetuned/result.json: damaged",
        f"{NETWORK} soft 0.6: no seed 1",
        "not measured in fused bf16 on a processor, 2 threads: l1 from scratch 0.6, weight 0.6",
        "the same cell and seed as",
        "unequal epochs",
    ):
        assert line in told, line


def test_what_only_another_network_of_the_data_has_is_missing(study):
    other, ten = ({**SHAPE, "depth": 32, "dataset": name} for name in ("cifar100", "cifar10"))
    for shape in other, ten:
        write(study / f"{shape['dataset']}/l1", "finetuned", "l1-0.3", shape=shape)
    told = [line for line in collect([study]).problems if "of other networks" in line]
    labels = [c.label for c in collect([study]).of(NETWORK) if c.label not in ("dense", "l1 0.3")]
    lacking = ", ".join(labels)
    assert told == [f"cifar100 resnet32: not finished, but of other networks: {lacking}"]


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(study):
    folder = study / "cifar100/resnet20/seed1/l1-0.6/finetuned"
    edit(folder, lambda r: r["arguments"].update(batch_size=1024))
    found = collect([study])
    assert cell(found, "l1 0.6").seeds == {0}
    assert any("left out, other batch_size than" in line for line in found.problems)


def test_timings_of_other_networks_are_left_out(study):
    seed = study / "cifar100/resnet20/seed0"
    for name, key in (("l1-0.6", "sha256"), ("soft-0.6", "reference")):
        file = seed / name / "finetuned/benchmark.json"
        rows = json.loads(file.read_text())
        file.write_text(json.dumps([{**row, key: "another"} for row in rows]))
    (seed / "weight-0.6/finetuned/benchmark.json").write_text("[{")
    found = collect([study])
    assert all(
        not cell(found, label).first.speeds for label in ("l1 0.6", "soft 0.6", "weight 0.6")
    )
    told = "\n".join(found.problems)
    assert "a timing of another checkpoint" in told
    assert "timed against baseline, not the dense network" in told
    assert "benchmark.json: damaged" in told


def test_machines_are_not_mixed(study):
    file = study / "cifar100/resnet20/seed0/baseline/benchmark.json"
    rows = json.loads(file.read_text())
    more = [{**r, "machine": {**r["machine"], "threads": 64}, "latency_ms": 1e3} for r in rows]
    file.write_text(json.dumps([*rows, *more]))
    found = collect([study])
    assert cell(found, "dense").mean("latency_ms", found.engine(NETWORK)) == 2.0


def test_each_seed_may_be_timed_on_another_machine(study):
    """The machine that knows the most cells is compared; the others are told too."""
    for label in ("baseline", "l1-0.6/finetuned", "l1-0.6-random/finetuned"):
        file = study / f"cifar100/resnet20/seed1/{label}/benchmark.json"
        rows = json.loads(file.read_text())
        elsewhere = {"device": "cpu", "name": "Another(R) CPU", "threads": 1}
        file.write_text(json.dumps([{**r, "machine": elsewhere, "latency_ms": 9} for r in rows]))
    found = collect([study])
    here, there = (f"fused bf16 on {n}" for n in ("a processor, 2 threads", "Another, 1 thread"))
    assert found.engine(NETWORK) == here
    assert cell(found, "l1 0.6").mean("latency_ms", here) == pytest.approx(2 / 2.4)
    told = [row[1:4] for row in tables.engine_rows(found)]
    assert ["l1", "0.6", here] in told
    assert ["l1", "0.6", there] in told
    for label in ("soft-0.6", "l1-0.3", "l1-0.6"):
        (study / f"cifar100/resnet20/seed0/{label}/finetuned/benchmark.json").unlink()
    rows = {tuple(row[1:3]): row for row in tables.rows(collect([study]))}
    assert there in rows["l1", "0.6"]  # on the one machine or the other
    assert "2.40x images/s (Another)" in tables.headline(collect([study]))
    times = plots.figures(collect([study]))["accuracy-time"].axes
    shown = [axes.get_xlabel().replace("\n", " ") for axes in times]
    assert shown[0].endswith(here)
    assert any(label.endswith(there) for label in shown)  # in a panel of its own
    assert here in rows["weight", "0.6"]
    (study / "cifar100/resnet20/seed0/weight-0.6/finetuned/benchmark.json").unlink()
    assert collect([study]).engine(NETWORK) == there


def test_older_results_and_unmeasured_ones(study):
    root = study / "cifar100/resnet20"
    edit(root / "seed0/weight-0.6/finetuned", lambda r: r.pop("sha256"))
    edit(root / "seed0/l1-0.3/pruned", lambda r: r.update(top1=None))
    found = collect([study])
    assert any("of an older version" in line for line in found.problems)
    assert len(found.lineage(cell(found, "l1 0.3").first)) == 3


def whole_log(**more):
    rows = ({"epoch": epoch, "top1": 9.0, "flipped": 1, **more} for epoch in range(1, 6))
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("result.json", change) for change in (
            {"tag": "weird"}, {"tag": 5}, {"tag": ""}, {"tag": " -0.9"},
            {"top1": None}, {"widths": None}, {"machine": "x"},
            {"seed": "x"}, {"sha256": None}, {"effective_macs": None}, {"dataset": None},
            {"arguments": {**SHAPE, "depth": 21}}, {"arguments": {**SHAPE, "arch": "vgg"}},
            {"arguments": []}, {"arguments": {**SHAPE, "epochs": "9"}}, {"effective_macs": 0},
            {"arguments": {**SHAPE, "epochs": 10**400}}, {"arguments": {**SHAPE, "epochs": 5.5}},
            {"top1": float("nan")}, {"top1": 164.5}, {"top1": -1.0}, {"top1": True},
            {"params": 10**400}, {"macs": float("inf")}, {"widths": {"conv1": "16"}},
        )),
        ("result.json", ""),
        ("result.json", "null"),
        ("result.json", "[" * 100_000),
        ("metrics.jsonl", ""),
        *(("metrics.jsonl", line) for line in ("[1,2]", "{}", '{"epoch": 1}', "3", "{")),
        *(("metrics.jsonl", whole_log(**more)) for more in (
            {"overlap": "x"}, {"flipped": [1]}, {"regrown": -1},
        )),
        *(("benchmark.json", text) for text in ("3", "{}", "[3]", "[{}]", "[[]]", "[")),
        *(("../../sensitivity/l1-inner-abc.json", text) for text in (
            "3", "[1]", '{"drops": [1]}', '{"drops": {"a": 1}}', '{"drops": {"a": {}}}', "{",
            '{"drops": {"a": {"x": 1}}}', '{"drops": {"a": {"0.1": 1}, "b": {"0.2": 1}}}',
        )),
    ],
)  # fmt: skip
def test_damage_is_listed_and_the_rest_reported(study, tmp_path, name, content):
    folder = study / "cifar100/resnet20/seed0/l1-0.3/finetuned"
    if isinstance(content, dict):
        edit(folder, lambda r: r.update(content))
    else:
        (folder / name).write_text(content)
    found = collect([study])
    if "metrics" in name or "sensitivity" in name:
        assert plots.figures(found)
    assert tables.to_csv(found)
    assert answers(found)
    assert any(name.split("/")[-1] in line or "timing" in line for line in found.problems)


@pytest.mark.parametrize(
    "damage",
    [
        *({"measured_speedup": x} for x in (-1.0, 0, "1", None)),
        *({"peak_memory_bytes": "x"}, {"batch_size": "128"}, {"file_bytes": -1}, {"cpu_ms": []}),
    ],
)
def test_damaged_timings_are_left_out(study, damage):
    file = study / "cifar100/resnet20/seed0/l1-0.3/finetuned/benchmark.json"
    (row,) = json.loads(file.read_text())
    file.write_text(json.dumps([{**row, **damage}]))
    found = collect([study])
    assert not cell(found, "l1 0.3").speeds
    assert "l1-0.3/finetuned: a damaged timing was left out" in "\n".join(found.problems)
    assert tables.markdown(found)


def test_a_training_whose_log_is_cut_short_is_told(study):
    folder = study / "cifar100/resnet20/seed0/l1-0.3/finetuned"
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    found = collect([study])
    assert cell(found, "l1 0.3").mean("top1") == 69.9
    assert any("l1-0.3/finetuned/metrics.jsonl: not the whole" in line for line in found.problems)


def test_machines_tell_what_was_done_there(study):
    edit(study / "cifar100/resnet20/seed1/baseline", lambda r: r["machine"].update(name="other"))
    other, first = sorted(machines(collect([study])), key=lambda line: "name a processor" in line)
    assert other.endswith(f"name other, precision bf16, threads 2: trained {NETWORK} seed 1")
    assert first.endswith(f": timed {NETWORK} seeds 0, 1; trained {NETWORK} seeds 0, 1")


def test_a_trial_does_not_throw_the_seeds_out(study):
    trial = study / "cifar100/a-trial"  # comes first
    dense = write(trial / "whole", "baseline", top1=5.0, seed=7, train_images=200)
    like = {"share": 0.4, "seed": 7, "recipe": "default"}
    cut = write(trial / "cut", "pruned", "l1-0.6", parent=dense, epochs=None, **like)
    write(trial / "tuned", "finetuned", "l1-0.6", parent=cut, **like)
    found = collect([study])
    assert cell(found, "dense").seeds == cell(found, "l1 0.6").seeds == {0, 1}
    for name in ("whole", "tuned"):
        (line,) = (line for line in found.problems if f"a-trial/{name}: left out" in line)
        assert "train_images" in line


def test_stages_whose_parents_are_not_here(study):
    seed = study / "cifar100/resnet20/seed0"
    (seed / "baseline/result.json").unlink()
    edit(seed / "soft-0.6/pruned", lambda r: r["arguments"].update(parent=r["sha256"]))
    found = collect([study])
    assert found.epochs(cell(found, "l1 0.6")) == 10  # as that of the seed whose parents are here
    assert found.epochs(cell(found, "soft 0.6")) == 5
    assert any("l1-0.6/pruned: the stage that it came from" in line for line in found.problems)


def test_times_of_a_later_seed_count_too(study):
    for file in study.glob("cifar100/resnet20/seed0/**/benchmark.json"):
        file.unlink()
    for name, speedup in (("baseline", 1.0), ("l1-0.6/finetuned", 2.0)):
        file = study / f"cifar100/resnet20/seed1/{name}/benchmark.json"
        (row, *_) = json.loads(file.read_text())
        file.write_text(json.dumps([{**row, "measured_speedup": speedup}]))
    found = collect([study])
    table = list(csv.DictReader(io.StringIO(tables.to_csv(found))))
    assert [row["time x"] for row in table if row["seeds"] == "2"][:2] == ["1.0", "2.0"]
    assert len(tables.engine_rows(found)) == 3


def test_links_are_followed_and_folders_given_twice_count_once(study, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/cifar100").symlink_to(study / "cifar100")
    for loop in "abc":  # every way round them would be one more without end
        (tmp_path / "linked" / loop).symlink_to(tmp_path / "linked")
    assert len(collect([tmp_path / "linked"]).finished) == len(collect([study]).finished)
    assert len(collect([study, study / "cifar100"]).finished) == len(collect([study]).finished)


def test_a_series_is_timed_in_one_place_if_it_can_be(study):
    """Though most others were timed elsewhere, and one of its cells there too."""
    seeds = study / "cifar100/resnet20"
    (row,) = json.loads((seeds / "seed1/l1-0.6/finetuned/benchmark.json").read_text())
    elsewhere = {**row, "machine": {"device": "cpu", "name": "Another", "threads": 1}}
    for file in seeds.glob("seed*/l1-0.*/finetuned/benchmark.json"):
        sha256 = json.loads(file.with_name("result.json").read_text())["sha256"]
        rows = [{**elsewhere, "sha256": sha256}]
        rows += json.loads(file.read_text()) if "l1-0.6" in str(file) else []
        file.write_text(json.dumps(rows))
    found = collect([study])
    assert found.engine(NETWORK) == "fused bf16 on a processor, 2 threads"
    places = {found.timed_in(cell(found, f"l1 {amount}")) for amount in ("0.3", "0.6")}
    assert places == {"fused bf16 on Another, 1 thread"}


def test_stages_have_their_own_names_where_links_lead_to_them_too(study):
    (study / "cifar100/resnet20/best").symlink_to(study / "cifar100/resnet20/seed0")
    folders = [run.folder for run in collect([study]).finished]
    assert not any("best" in folder for folder in folders)
    assert any("seed0" in folder for folder in folders)


def test_a_result_that_does_not_say_what_was_pruned_is_listed(study):
    edit(study / "cifar100/resnet20/seed0/l1-0.3/finetuned", lambda result: result.pop("tag"))
    assert any("l1-0.3/finetuned/result.json: damaged" in p for p in collect([study]).problems)


def test_networks_for_other_images_are_other_networks(study):
    write(study / "large", "baseline", shape={**SHAPE, "image_size": 64})
    assert collect([study]).networks == [NETWORK, f"{NETWORK} 64px"]


def test_ways_of_pruning_do_not_share_a_name(study):
    seed = study / "cifar100/resnet20/seed0"
    for folder, stage, tag, more in (
        ("bn", "finetuned", "l1-0.6-bn", {}),
        ("settled", "finetuned", "l1-0.6", {"reestimate_bn": True}),
        ("from-start", "scratch", "soft-0.6", {}),
        ("control", "like", "soft-0.6", {}),
        ("skips", "finetuned", "l1-0.6-skipfc,layer2.0", {}),
        ("first", "finetuned", "l1-0.6-all+l1-0.3", {}),
        ("second", "finetuned", "l1-0.6+l1-0.3-all", {}),
    ):
        write(seed / folder, stage, tag, share=0.4, **more)
    found = collect([study])
    labels = {
        *("l1 bn 0.6", "l1 re-estimated 0.6", "l1 skipfc,layer2.0 0.6"),
        *("soft from the start 0.6", "soft from scratch 0.6"),
        *("l1 all+l1 0.6+0.3", "l1+l1 all 0.6+0.3"),
    }
    assert labels <= {c.label for c in found.cells}
    assert {c.label for c in found.cells if c.first.control} & labels == {"soft from scratch 0.6"}


def test_of_two_versions_of_torch_in_one_place_the_later_timing_counts(study):
    for name in ("baseline", "l1-0.6/finetuned"):
        file = study / f"cifar100/resnet20/seed0/{name}/benchmark.json"
        rows = json.loads(file.read_text())
        later = [{**r, "machine": {**r["machine"], "torch": "9"}, "latency_ms": 7.0} for r in rows]
        file.write_text(json.dumps([*rows, *later]))
    (study / "cifar100/resnet20/seed1/l1-0.6/finetuned/benchmark.json").unlink()
    found = collect([study])
    l1 = cell(found, "l1 0.6")
    assert l1.mean("latency_ms", found.engine(NETWORK)) == 7.0
    assert [row["latency_ms"] for row in l1.speeds] == [7.0]


def test_networks_pruned_twice_and_cells_of_equal_cost(study):
    seed = study / "cifar100/resnet20/seed0"
    write(seed / "twice", "finetuned", "l1-0.3+l1-0.5", share=0.4, top1=65.0)
    write(seed / "same", "finetuned", "l1-0.5", share=0.4, top1=65.0)
    found = collect([study])
    assert cell(found, "l1+l1 0.3+0.5").mean("top1") == 65.0
    assert plots.figures(found)  # two cells of l1 with the same MACs
