"""Runs become cells by what they are, and whatever is not sound is left out by name."""

import json
import os

import pytest

from reporting import tables
from reporting.load import TIMES, load
from tests.reporting.conftest import NETWORK, SHAPE, cell, edit, step, timing, write

ALONE = "not of this checkpoint, or timed beside a network that is not dense or not here"
DAMAGED = "missing, damaged or of an older version, left out"


def names(study):
    return [(c.identity.series, c.identity.amount, len(c.runs)) for c in study.cells[NETWORK]]


def test_runs_become_cells(study):
    found = load([study])
    assert names(found) == [
        *[("dense", "", 2), ("dense longer", "", 1)],
        *[("l1", "30 %", 1), ("l1", "60 %", 2)],
        *[("l1 from scratch", "60 %", 2), ("l1 random", "60 %", 2)],
        *[("soft", "60 %", 1), ("weight", "60 %", 1)],
    ]
    l1 = cell(found, "l1", "60 %")
    assert l1.mean("top1") == 66.5
    assert l1.spread("top1") == pytest.approx(0.5**0.5)
    assert cell(found, "soft", "60 %").spread("top1") is None
    assert l1.identity.epochs == (5, 5)  # those of the dense network too
    assert cell(found, "l1 from scratch", "60 %").identity.epochs == (10,)  # its own alone
    assert found.left_out == []


def test_folder_names_mean_nothing(study):
    before = names(load([study]))
    for number, folder in enumerate(sorted(study.glob("seed*/*/end"))):
        folder.rename(study / f"soft-0.9-{number}")
    assert names(load([study])) == before


@pytest.mark.parametrize(
    ("change", "series"),
    [
        *((lambda r, k=k, v=v: r["pruning"][0].update({k: v}), s) for k, v, s in (
            ("criterion", "taylor", "l1 taylor"),
            ("scope", "all", "l1 all"),
            ("round_to", 8, "l1 by8"),
        )),
        (lambda r: r["pruning"].append(step("weight", None, pattern="2:4")), "l1 + weight"),
        *((lambda r, k=k, v=v: r["arguments"]["recipe"].update({k: v}), s) for k, v, s in (
            ("name", "lr-rewind", "l1 lr-rewind"),
            ("teacher", "a hash", "l1 taught"),
            ("recalibrate", True, "l1 recalibrated"),
        )),
        (lambda r: r.update(stage="scratch"), "l1 during training"),
    ],
)  # fmt: skip
def test_what_differs_in_more_than_the_seed_is_another_cell(study, change, series):
    edit(study / "seed1/l1-6/end/result.json", change)
    counts = [(s, n) for s, amount, n in names(load([study])) if s == series or s == "l1"]
    assert (series, 1) in counts
    assert counts.count(("l1", 1)) == 2  # 30 %, and what is left of 60 %


def test_amounts(study):
    for number, (one, told) in enumerate((
        (step(ratio=[0.6, 0.3, 0.1]), "60/30/10 %"),
        (step(ratio=None, target_macs=0.5), "macs 0.5"),
        (step("weight", None, pattern="2:4"), "pattern 2:4"),
    )):  # fmt: skip
        write(study / f"{number}", "finetuned", one)
        assert told in {amount for _, amount, _ in names(load([study]))}
    write(study / "twice", "finetuned", step(ratio=0.3), step())
    assert ("l1 + l1", "30 % + 60 %", 1) in names(load([study]))


def test_other_images_are_another_network(study):
    edit(
        study / "seed0/soft/end/result.json",
        lambda r: r["arguments"]["network"].update(mean=[0.5] * 3, std=[0.2] * 3),
    )
    for number, more in enumerate(
        ({"image_size": 64}, {"train_images": 500}, {"dataset": "cifar10"})
    ):
        write(study / f"{number}", "baseline", shape={**SHAPE, **more})
    assert list(load([study]).cells) == [
        *("cifar10 resnet20", NETWORK, f"{NETWORK} 500 images", f"{NETWORK} 64px")
    ]


def test_differences_are_taken_seed_by_seed(study):
    found = load([study])
    l1 = cell(found, "l1", "60 %")
    assert found.to_dense(l1) == [-4.0, -4.0]
    assert found.to_control(l1, "random") == [2.0, 1.0]
    assert found.to_control(l1, "scratch") == [1.0, 1.0]
    assert found.to_control(l1, "longer") == [-4.5]  # the seed that both have
    weight = cell(found, "weight", "60 %")
    assert found.to_control(weight, "random") == []  # that of l1 is not its own
    assert found.to_control(cell(found, "l1 random", "60 %"), "scratch") == []
    assert found.to_dense(cell(found, "dense")) == []


def test_the_dense_network_that_it_came_from_counts(study):
    """Though another kind, trained for longer, has as many seeds."""
    for seed in (0, 1):
        write(study / f"other{seed}", "baseline", seed=seed, top1=75.0, epochs=50)
    l1 = cell(load([study]), "l1", "60 %")
    assert load([study]).to_dense(l1) == [-4.0, -4.0]


def test_what_was_pruned_in_training_is_compared_with_as_long_a_training(study):
    usual = {"scope": "all", "allocation": "cost", "min_keep": 0.1}  # with a target
    ramp = step(ratio=None, target_macs=0.5, gradual=True, **usual)
    for seed in (0, 1):
        write(study / f"longer{seed}", "baseline", seed=seed, top1=75.0, epochs=50)
        write(study / f"once{seed}", "scratch", ramp, seed=seed, top1=73.0, epochs=42)
        twin = {"top1": 72.0, "control": "scratch"}
        write(study / f"like{seed}", "like", ramp, seed=seed, epochs=42, **twin)
    found = load([study])
    once = cell(found, "l1 during training", "macs 0.5")  # which always is gradual
    assert found.to_dense(once) == [-2.0, -2.0]
    assert found.to_control(once, "scratch") == [1.0, 1.0]
    assert found.to_dense(cell(found, "l1 from scratch", "macs 0.5")) == [-3.0, -3.0]


def test_the_time_of_8_bits_is_not_shown_beside_another_accuracy(study):
    for file in study.glob("seed*/*/end/benchmark.json"):
        int8 = {"engine": "openvino-int8", "precision": "int8", "images_per_second": 1e6}
        edit(file, lambda rows, int8=int8: rows.append({**rows[0], **int8}))
    assert load([study]).engine == "fused bf16"


def test_the_machine_where_most_was_timed_counts(study):
    other = {"device": "cuda", "name": "A GPU"}
    for file in study.glob("seed*/baseline/benchmark.json"):
        edit(file, lambda rows: rows.append({**rows[0], "machine": other, "latency_ms": 0.1}))
    found = load([study])
    assert (found.machine, found.engine) == ("a processor, 2 threads", "fused bf16")
    assert cell(found, "dense").mean("latency_ms") == 2.0
    found = load([study], "gpu")
    assert found.machine == "A GPU"
    assert cell(found, "dense").mean("latency_ms") == 0.1
    assert cell(found, "l1", "60 %").mean("latency_ms") is None
    with pytest.raises(ValueError, match=r"--machine TPU: .*a processor, 2 threads; A GPU"):
        load([study], "TPU")


def test_of_engines_with_as_many_timings_the_fastest_counts(study):
    for file in study.glob("seed*/*/end/benchmark.json"):
        edit(file, lambda rows: rows.append({**rows[0], "engine": "eager", "images_per_second": 1}))
    assert load([study]).engine == "fused bf16"


def test_the_machine_with_the_most_timings_counts_in_whatever_engines(study):
    other = {"name": "another", "threads": 2}
    for file in study.glob("seed*/*/end/benchmark.json"):
        more = [{"machine": other, "engine": engine} for engine in ("eager", "compile")]
        edit(file, lambda rows, more=more: rows.extend({**rows[0], **one} for one in more))
    assert load([study]).machine == "another, 2 threads"


def test_a_later_timing_that_does_not_count_hides_no_earlier_one(study):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows.append({**rows[0], "reference": "nothing", "latency_ms": 9.0}))
    found = load([study])
    assert cell(found, "soft", "60 %").mean("latency_ms") < 9
    assert found.left_out == [f"{file}: {ALONE}"]


def test_a_run_that_is_there_twice_counts_once(study):
    write(
        study / "z",
        "finetuned",
        step("soft"),
        share=0.4,
        top1=20.0,
        parent=f"hash of {study}/seed0/soft/cut",
    )
    found = load([study])
    assert cell(found, "soft", "60 %").mean("top1") == 60.0
    assert found.left_out == [f"{study}/z: the same cell and seed as {study}/seed0/soft/end"]


def test_what_is_unfinished_or_was_not_tuned_is_told(study):
    (study / "begun").mkdir()
    (study / "begun/metrics.jsonl").write_text('{"epoch": 1, "top1": 1.0}\n')
    dense = "hash of " + str(study / "seed0/baseline")
    write(study / "cut", "pruned", step(ratio=0.9), parent=dense)
    told = load([study]).left_out
    assert told[0].startswith(f"{study}/begun: unfinished")
    assert told[1] == f"{study}/cut: pruned, but not fine-tuned"


def test_what_was_timed_without_fine_tuning_is_a_row_of_its_own(study):
    dense = "hash of " + str(study / "seed0/baseline")
    for name, top1 in (("cut", 1.5), ("unknown", None)):
        ratio = 0.9 if name == "cut" else 0.8
        write(study / name, "pruned", step(ratio=ratio), top1=top1, parent=dense,
              timings=[timing(3.0, reference=dense)])  # fmt: skip
    found = load([study])
    assert found.left_out == []
    cut, unknown = (cell(found, "l1 not fine-tuned", amount) for amount in ("90 %", "80 %"))
    assert (cut.mean("measured_speedup"), cut.mean("top1")) == (3.0, 1.5)
    assert found.to_dense(cut) == [-68.5]
    assert unknown.mean("top1") is None
    assert found.to_dense(unknown) == found.to_control(unknown, "random") == []


def test_a_study_without_its_dense_network_says_so(tmp_path):
    write(tmp_path / "cut", "pruned", step(ratio=0.9), parent="hash of what is not here")
    told = f"no trained network below; {tmp_path}/cut: the dense network that it came from"
    with pytest.raises(FileNotFoundError, match=told):
        load([tmp_path])


def test_a_plan_to_prune_is_not_taken_for_the_network_that_was_timed(study):
    """Its result tells the sizes after a training that is still to come."""
    dense = "hash of " + str(study / "seed0/baseline")
    write(study / "plan", "pruned", step("soft", ratio=0.9), share=0.1, parent=dense,
          timings=[timing(1.0, reference=dense, effective_macs=40_000_000)])  # fmt: skip
    found = load([study])
    assert f"{study}/plan: pruned, but not fine-tuned" in found.left_out
    assert not any(c.identity.amount == "90 %" for c in found.cells[NETWORK])


def test_what_was_not_evaluated_is_compared_with_nothing(study):
    dense = "hash of " + str(study / "seed0/baseline")
    how = {"parent": dense, "timings": [timing(3.0, reference=dense)]}
    write(study / "cut", "pruned", step(ratio=0.9), top1=1.5, **how)
    random = step(ratio=0.9, criterion="random")
    write(study / "random", "pruned", random, top1=None, control="random", **how)
    found = load([study])
    assert found.to_control(cell(found, "l1 not fine-tuned", "90 %"), "random") == []


@pytest.mark.parametrize("top1", ["high", 300.0])
def test_an_accuracy_after_the_cut_is_checked_like_any(study, top1):
    write(study / "cut", "pruned", step(ratio=0.9), top1=top1)
    assert f"{study / 'cut/result.json'}: {DAMAGED}" in load([study]).left_out


def test_results_of_an_older_version_are_named(study):
    file = study / "seed0/soft/end/result.json"
    edit(file, lambda r: (r.pop("pruning"), r.pop("control"), r.update(tag="soft-0.6")))
    (told, _) = load([study]).left_out
    assert told == f"{file}: {DAMAGED}"


def log(**more):
    return "".join(json.dumps({"epoch": e, "top1": 9.0, **more}) + "\n" for e in range(1, 6))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("result.json", change) for change in (
            {"top1": None}, {"top1": 164.5}, {"top1": -1.0}, {"top1": True}, {"seed": "x"},
            {"pruning": 5}, {"pruning": [5]}, {"pruning": [{"method": "l1", "speed": 1}]},
            {"pruning": [{"skip": [["a"]]}]}, {"control": "mine"}, {"control": []},
            {"stage": "weird"}, {"stage": 5}, {"widths": None}, {"widths": {"conv1": "16"}},
            {"machine": "x"}, {"sha256": None}, {"effective_macs": 0}, {"params": 10**400},
            {"top1": float("nan")}, {"loss": float("nan")}, {"checkpoint": "\ud800"},
            {"arguments": []}, {"arguments": {}}, {"arguments": {"network": {}, "parent": None}},
        )),
        *(("result.json", text) for text in ("", "null", "[" * 100_000)),
        *(("metrics.jsonl", text) for text in (
            "", "{", "3", "{}", log()[:-20], log(top1="x"), log(flipped=[1]), log(flipped=-1),
        )),
        *(("benchmark.json", text) for text in ("3", "{}", "[")),
    ],
)  # fmt: skip
def test_damage_is_named_and_the_rest_reported(study, name, content):
    file = study / "seed0/soft/end" / name
    if isinstance(content, dict):
        edit(file, lambda r: r.update(content))
    else:
        file.write_text(content)
    found = load([study])
    assert found.left_out[0] == f"{file}: {DAMAGED}"
    assert tables.to_csv(found)
    assert ("soft", "60 %", 1) in names(found) or name == "result.json"
    assert len(names(found)) == (7 if name == "result.json" else 8)


@pytest.mark.parametrize(
    "shape", [{"arch": "vgg"}, {"depth": 21}, {"arch": "resnet_de"}, {"depth": None}, {"folder": 5}]
)
def test_networks_that_cannot_be_are_left_out(study, shape):
    file = study / "seed0/soft/end/result.json"
    edit(file, lambda r: r["arguments"]["network"].update(shape))
    found = load([study])
    assert found.left_out[0] == f"{file}: {DAMAGED}"
    assert len(names(found)) == 7


@pytest.mark.parametrize(
    "damage",
    [
        *({"measured_speedup": x} for x in (-1.0, "1", None)),
        *({"effective_macs": x} for x in (-1, "1", None, True, [])),
        *(
            {"peak_memory_bytes": "x"},
            {"file_bytes": {}},
            {"remarks": [1]},
            {"machine": {}},
            {"engine": None},
        ),
    ],
)
def test_damaged_timings_are_left_out(study, damage):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows[0].update(damage))
    found = load([study])
    assert found.left_out == [f"{file}: 1 of 1 timings {DAMAGED}; time it again"]
    assert cell(found, "soft", "60 %").mean("latency_ms") is None


@pytest.mark.parametrize("damaged", [{}, 5, None, [], {"engine": "eager"}])
def test_a_damaged_timing_costs_no_other_one(study, damaged):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows.append(damaged))
    found = load([study])
    assert found.left_out == [f"{file}: 1 of 2 timings {DAMAGED}; time it again"]
    assert cell(found, "soft", "60 %").mean("latency_ms") > 0


@pytest.mark.parametrize("parent", [{}, [], 5])
def test_a_parent_is_a_hash(study, parent):
    file = study / "seed0/soft/end/result.json"
    edit(file, lambda r: r["arguments"].update(parent=parent))
    assert load([study]).left_out[0] == f"{file}: {DAMAGED}"


@pytest.mark.parametrize("key", ["sha256", "reference"])
def test_timings_of_other_networks_are_left_out(study, key):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows[0].update({key: "another"}))
    found = load([study])
    assert found.left_out[0].startswith(f"{file}: not of this")
    assert cell(found, "soft", "60 %").mean("latency_ms") is None


def test_nothing_waits_for_a_pipe(study):
    for name in ("result.json", "metrics.jsonl", "benchmark.json"):
        file = study / "seed0/soft/end" / name
        file.unlink()
        os.mkfifo(file)
        told = load([study]).left_out
        assert f"{study / 'seed0/soft/end/result.json'}: {DAMAGED}" in told


def test_a_folder_in_the_place_of_a_file_is_told(study):
    for name in ("benchmark.json", "metrics.jsonl", "result.json"):
        file = study / "seed0/soft/end" / name
        file.unlink()
        file.mkdir()
        assert f"{file}: {DAMAGED}" in load([study]).left_out


def test_links_are_followed_and_may_lead_back(study, tmp_path):
    (study / "seed0/back").symlink_to(study)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/runs").symlink_to(study)
    assert names(load([tmp_path / "links"])) == names(load([study]))
    assert load([study, tmp_path / "links"]).left_out == []  # the same files, once


def test_nothing_to_report_is_an_error_that_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load([tmp_path / "absent"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"no finished stage below; .*damaged"):
        load([tmp_path])


def test_a_timing_of_a_later_version_replaces_an_earlier_one(study):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows.append({**rows[0], "latency_ms": 7.0}))
    assert cell(load([study]), "soft", "60 %").mean("latency_ms") == 7.0


BOTH = ["latency_speedup", "measured_speedup"]
BUSY = "fused bf16: timed on a busy machine; time it again"


@pytest.mark.parametrize(
    ("uncertain", "gone"),
    [
        (BOTH, set(TIMES)),
        (BOTH[:1], {"latency_ms", "latency_speedup"}),
        (BOTH[1:], {"images_per_second", "measured_speedup"}),
    ],
)
def test_what_a_busy_machine_made_uncertain_is_left_out(study, uncertain, gone):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows[0].update(uncertain=uncertain))
    found = load([study])
    assert found.left_out == [f"{file}: {BUSY}"]
    soft = cell(found, "soft", "60 %")
    assert {name for name in TIMES if soft.mean(name) is None} == gone
    assert soft.mean("file_bytes") == 4_000_000  # no clock needed
    row = dict(zip(tables.NAMES, tables.texts(found, [soft])[0], strict=True))
    assert (row["speedup"] == "") == ("measured_speedup" in gone)
    assert (row["seeds timed"] == "") == (uncertain == BOTH)


def test_the_latest_certain_value_of_each_figure_counts(study):
    file = study / "seed0/soft/end/benchmark.json"
    later = [{"latency_ms": 9.0, "images_per_second": 9.0, "uncertain": BOTH[:1]}]
    later += [{"latency_ms": 8.0, "images_per_second": 8.0, "uncertain": BOTH}]
    edit(file, lambda rows: rows.extend({**rows[0], **one} for one in later))
    found = load([study])
    soft = cell(found, "soft", "60 %")
    assert soft.mean("images_per_second") == 9.0
    assert 0 < soft.mean("latency_ms") < 8
    assert found.left_out == []


def test_a_busy_machine_does_not_count_as_the_one_where_most_was_timed(study):
    busy = {"machine": {"name": "busy", "threads": 2}, "uncertain": BOTH}
    for file in study.glob("seed*/*/end/benchmark.json"):
        more = [{**busy, "engine": engine} for engine in ("a", "b", "c")]
        edit(file, lambda rows, more=more: rows.extend({**rows[0], **one} for one in more))
    assert load([study]).machine == "a processor, 2 threads"


def test_the_engine_with_the_most_certain_speedups_counts(study):
    for file in study.glob("seed*/*/end/benchmark.json"):
        edit(file, lambda rows: rows.append({**rows[0], "engine": "eager", "images_per_second": 1}))
        edit(file, lambda rows: rows[0].update(uncertain=BOTH[1:]))
    assert load([study]).engine == "eager bf16"


@pytest.mark.parametrize("odd", [5, ["latency_ms"], [[]], "x"])
def test_an_odd_list_of_what_is_uncertain_is_told(study, odd):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows[0].update(uncertain=odd))
    assert load([study]).left_out == [f"{file}: 1 of 1 timings {DAMAGED}; time it again"]


def test_timings_of_an_earlier_version_on_a_busy_machine_are_left_out(study):
    file = study / "seed0/soft/end/benchmark.json"
    edit(file, lambda rows: rows[0].update(busy=True))
    assert load([study]).left_out == [f"{file}: 1 of 1 timings {DAMAGED}; time it again"]


def test_a_network_from_elsewhere_is_the_dense_one_of_what_was_cut_from_it(study):
    file = study / "seed0/baseline/result.json"
    edit(file, lambda r: r.update(stage="imported", seed=9, top1=80.0))
    edit(file, lambda r: r["arguments"].update(parent="their file"))
    edit(file, lambda r: r["arguments"].pop("recipe"))
    (file.parent / "metrics.jsonl").unlink()
    edit(study / "seed0/soft/cut/result.json", lambda r: r["arguments"].update(parent="their file"))
    found = load([study])
    assert found.to_dense(cell(found, "soft", "60 %")) == [-20.0]
    edit(file, lambda r: r["arguments"]["network"].update(mean=[0.5] * 3))  # read in another way
    found = load([study])
    assert found.to_dense(cell(found, "soft", "60 %")) == []
    gone = study / "seed0/soft/end"
    assert f"{gone}: the dense network that it came from is not here" in found.left_out


def test_cropped_and_squashed_images_are_no_one_thing(study):
    edit(
        study / "seed1/baseline/result.json",
        lambda r: r["arguments"]["network"].update(resize="crop"),
    )
    assert len(load([study]).cells) == 2
