"""Rows: the best batch, differences of logits, and counts as reasons."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch

from measurement.engines import ENGINES
from measurement.rows import NEEDED, Subject, _others, compare, measure, reasons, remarks
from models import new_spec
from tests.conftest import lively
from utils.device import Machine

CPU = Machine(torch.device("cpu"), torch.float32)
WHY = ["a reason", "another"]


def row(promised=2.0, speedup=2.0, latency=2.0, high=1.1, batch_high=1.1, batch=8):
    return {
        **{"theoretical_speedup": promised, "batch_size": batch},
        **{"latency_speedup": latency, "latency_speedup_low": 1.0, "latency_speedup_high": high},
        **{"measured_speedup": speedup, "measured_speedup_low": 1.0},
        "measured_speedup_high": batch_high,
    }


@pytest.mark.parametrize(
    ("promised", "measured", "short"),
    [
        (2.0, 1.9, False),
        (2.0, 1.7, False),
        (1.5, 1.2, True),
        (1.02, 0.5, False),
        (2.0, 1.2, True),
        (2.0, 1.0, True),
        (2.0, 0.8, True),
    ],
)
def test_a_speedup_that_falls_short_is_told_with_its_reasons(promised, measured, short):
    told = f"speedup {measured:.2f} for a MAC reduction of {promised:.2f}; a reason; another"
    for batch in (1, 8):
        found = remarks(row(promised, measured, promised, batch=batch), WHY)
        assert found == [f"batch {batch}: {told}"] * short
    assert len(remarks(row(promised, measured, measured, batch=1), WHY)) == short
    found = remarks(row(promised, promised, measured), WHY)
    assert found == [f"batch 1: {told}"] * short


def test_a_busy_machine_explains_nothing():
    busy = "the machine was busy: speedup 1.00 to 1.60"
    assert remarks(row(2, 1, batch_high=1.6), WHY) == [f"batch 8: {busy}"]
    one, eight = remarks(row(2, 1, 1, high=1.6), WHY)
    assert one == f"batch 1: {busy}"
    assert eight.endswith("a reason; another")
    told = remarks(row(high=1.6, batch_high=1.6), WHY)  # whatever the speedup was
    assert told == [f"batch {n}: {busy}" for n in (1, 8)]


def test_a_dense_network_gives_no_reasons():
    network = lively(new_spec(26, 10, arch="resnet_de", width=8))
    assert reasons(network, network, 8) == []


def test_masks_are_named():
    dense, network = lively(new_spec(20, 10, width=4)), lively(new_spec(20, 10, width=4))
    with torch.no_grad():
        for values in network.parameters():
            values[torch.rand(values.shape) < 0.9] = 0
    (told,) = reasons(network, dense, 8)
    share, text = told.split(" ", 1)
    assert 88 <= int(share.rstrip("%")) <= 92
    assert text == "of its parameters are zero, and dense kernels multiply zeros"


def test_odd_widths_are_counted():
    dense = new_spec(20, 10)
    widths = {name: w - w // 4 for name, w in dense["widths"].items()}  # 12, 24, 48: of 4
    odd = {**widths, "layer1.0.conv1": 11, "layer3.1.conv1": 49}
    for own, told in ((widths, []), (odd, ["2 of its 19 widths are no multiple of 4"])):
        network = lively({**dense, "widths": own, "pads": dict.fromkeys(dense["pads"], 0)})
        found = reasons(network, lively(dense), 8)
        assert [line for line in found if "widths" in line] == told


def test_cutting_inside_blocks_leaves_the_activations():
    dense = new_spec(26, 10, width=4)
    inner = {
        n: 1 if n.endswith(("conv1", "conv2")) and "." in n else w
        for n, w in dense["widths"].items()
    }
    told = reasons(lively({**dense, "widths": inner}), lively(dense), 16)
    (activations,) = (line for line in told if "activations" in line)
    assert activations.endswith("x")


def subject(name):
    network = lively(new_spec(20, 3, width=2))
    return Subject(name, SimpleNamespace(image_size=8), network)


def test_the_best_batch_counts_and_logits_are_compared():
    rows = measure([subject("a"), subject("b")], "eager", (1, 64, 64), 0.01, CPU)
    assert len(rows) == 2
    for found in rows:
        assert found["batch_size"] == 64  # a tiny network is all overhead
        assert found["images_per_second"] == pytest.approx(64e3 / found["batch_ms"])
        assert found["images_per_second"] > 1e3 / found["latency_ms"]
        assert found["logit_difference_share"] < 1e-4


def test_how_far_figures_can_be_trusted():
    for one, batch, drifted in itertools.product((False, True), repeat=3):
        ends = {"high": 1.6 if one else 1.1, "batch_high": 1.6 if batch else 1.1}
        found = {**row(**ends), "effective_macs": 1, "name": "a"}
        for time in ("latency_ms", "batch_ms"):
            found |= {f"{time}_p10": 1.0, f"{time}_p90": 2.0 if drifted else 1.0}
        compare(found, found)
        spoiled = ["latency_speedup"] * one + ["measured_speedup"] * batch
        assert (found["uncertain"], found["drifted"]) == (spoiled, drifted)


def test_logits_that_are_not_numbers_are_not_lost(monkeypatch):
    """At batch 1 alone, where a maximum over Python's floats would lose them."""

    def odd(network, machine):
        return lambda x: lambda: network(x).detach() * (1 if len(x) > 1 else math.nan)

    monkeypatch.setitem(ENGINES, "eager", odd)
    (found,) = measure([subject("a")], "eager", (2,), 0.01, CPU)
    assert math.isnan(found["logit_difference_share"])


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        ([], [], False),
        ([], ["latency_speedup"], True),
        (["latency_speedup"], ["latency_speedup"], False),
        (["latency_speedup"], ["latency_speedup", "measured_speedup"], True),
        (["latency_speedup"], ["measured_speedup"], True),
        (["latency_speedup", "measured_speedup"], ["measured_speedup"], False),
        ([], ["drifted"], True),
        (["drifted"], ["latency_speedup"], True),
        (["drifted"], [], False),
    ],
)
def test_a_timing_stays_as_long_as_something_in_it_is_more_certain(tmp_path, before, after, stays):
    def timed(doubts, latency):
        uncertain = [doubt for doubt in doubts if doubt != "drifted"]
        row = {**dict.fromkeys(NEEDED), "engine": "eager", "latency_ms": latency}
        return {**row, "uncertain": uncertain, "drifted": "drifted" in doubts}

    file, old = tmp_path / "benchmark.json", timed(before, 1.0)
    file.write_text(json.dumps([old]))
    assert _others(file, timed(after, 2.0)) == [old] * stays


def test_a_timing_of_a_network_alone_replaces_none_beside_the_dense_one(tmp_path):
    file, old = tmp_path / "benchmark.json", {**dict.fromkeys(NEEDED), "reference": "dense"}
    file.write_text(json.dumps([old]))
    assert _others(file, {**old, "reference": "itself"}) == [old]
    assert _others(file, {**old, "latency_ms": 2.0}) == []


SPOILED = {**dict.fromkeys(NEEDED), "sha256": "abc", "uncertain": 5}


@pytest.mark.parametrize("damage", [None, 5, "row", {"sha256": "abc", "engine": "fused"}, SPOILED])
def test_a_damaged_row_costs_no_other_one(tmp_path, capsys, damage):
    file = tmp_path / "benchmark.json"
    sound = {**dict.fromkeys(NEEDED), "sha256": "abc", "uncertain": [], "drifted": False}
    file.write_text(json.dumps([damage, sound]))
    assert _others(file, {**sound, "engine": "fused"}) == [sound]
    assert f"{file}: damaged; 1 of its rows are gone" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "5", "[{", "[" * 100_000])
def test_a_damaged_file_is_written_anew(tmp_path, capsys, text):
    file = tmp_path / "benchmark.json"
    file.write_text(text)
    assert _others(file, {"sha256": "abc"}) == []
    assert f"{file}: damaged" in capsys.readouterr().err
