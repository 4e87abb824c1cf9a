"""Intervals and columns by hand, and what is printed into Markdown and CSV."""

import csv
import io

import pytest

from reporting import tables
from reporting.load import load
from tests.reporting.conftest import NETWORK, SHAPE, cell, edit, step, timing, write


def row(study, *which):
    (texts,) = tables.texts(study, [cell(study, *which)])
    return dict(zip(tables.NAMES, texts, strict=True))


def test_intervals():
    assert tables.interval([]) == (None, None)
    assert tables.interval([1.5]) == (1.5, None)
    mean, half = tables.interval([2.0, 1.0])
    assert (mean, half) == (1.5, pytest.approx(12.71 * 0.5**0.5 / 2**0.5, rel=1e-3))
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))
    assert tables.interval([5.0] * 40) == (5.0, 0.0)


def test_a_row(study):
    assert row(load([study]), "l1", "60 %") == {
        **{"method": "l1", "pruned": "60 %", "top-1 %": "66.50 ± 0.71", "Δ top-1": "-4.00 ± 0.00"},
        **{"params M": "0.400", "MAC reduction": "2.50", "speedup": "2.00", "latency ms": "1.00"},
        **{"control": "", "vs scratch": "+1.00 ± 0.00", "vs random": "+1.50 ± 6.36"},
        **{"vs longer": "-4.50", "seeds": "2", "seeds timed": "2", "epochs": "5 + 5"},
        **{"nonzero M": "0.400", "MACs M": "16.0", "speedup / MAC reduction": "1.00"},
        **{"latency speedup": "2.00", "images/s": "2,000", "peak memory MB": "100"},
        **{"file MB": "4.00", "compressed MB": "3.00"},
    }


def test_zero_weights_count_as_free_macs_only(study):
    weight = row(load([study]), "weight", "60 %")
    assert weight["MAC reduction"] == "2.50"
    assert (weight["MACs M"], weight["params M"], weight["nonzero M"]) == ("40.0", "1.000", "0.400")
    assert weight["speedup"] == "1.00"


def test_without_a_dense_network_or_times_there_are_no_ratios(tmp_path):
    write(tmp_path / "a", "finetuned", step())
    study = load([tmp_path])
    found = row(study, "l1", "60 %")
    assert all(found[name] == "" for name in ("Δ top-1", "MAC reduction", "speedup", "latency ms"))
    assert tables.card(study, NETWORK) == ["no dense network"]
    assert tables.place(study) == "1 runs; nothing timed"


def test_the_card_of_a_network(study):
    assert tables.card(load([study]), NETWORK) == [
        *("70.50 ± 0.71 % top-1", "1.000 M params", "2.00 ms latency", "40.0 M MACs"),
        "1,000 images/s",
    ]


def test_csv_has_all_digits_and_a_column_for_each_spread(study):
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(load([study])))))
    (l1,) = (line for line in lines if (line["method"], line["pruned"]) == ("l1", "60 %"))
    assert float(l1["top-1 % sd"]) == 0.5**0.5
    assert float(l1["vs random 95 %"]) == pytest.approx(6.355)
    assert float(l1["images/s"]) == 2000
    assert l1["network"] == NETWORK
    assert "vs scratch sd" not in l1


@pytest.mark.parametrize("start", "=+-@")
def test_no_cell_of_the_csv_is_a_formula(study, start):
    write(study / "evil", "baseline", shape={**SHAPE, "folder": f"/images/{start}cmd()"})
    edit(study / "seed0/soft/end/result.json", lambda r: r["pruning"][0].update(method=f"{start}m"))
    lines = list(csv.reader(io.StringIO(tables.to_csv(load([study])))))
    cells = {value for line in lines for value in line}
    assert f"'{start}cmd() resnet20" in cells
    assert f"'{start}m gate cubic" in cells
    assert not any(cell.startswith((f"{start}c", f"{start}m")) for cell in cells)


def test_a_line_for_each_cell_and_a_column_for_each_engine(study):
    rates, latencies = (tables.by_engine(load([study]), NETWORK, name) for name in tables.ENGINES)
    assert rates[0] == latencies[0] == ["method", "pruned", "fused bf16", "eager bf16"]
    assert ["dense", "", "1,000 (1.00)", "500 (1.00)"] in rates
    assert ["l1", "30 %", "1,050 (1.05)", ""] in rates
    assert ["l1", "60 %", "1.00 (2.00)", ""] in latencies
    assert not any("longer" in line[0] for line in rates)  # never timed
    write(study / "more", "baseline", seed=3, timings=[timing(engine="compile", drifted=True)])
    rates = tables.by_engine(load([study]), NETWORK, next(iter(tables.ENGINES)))
    assert ["dense", "", "1,000 (1.00)", "500 (1.00)", "(1.00)"] in rates  # no time that drifted


def test_markdown_is_escaped_and_has_no_empty_columns(study):
    evil = {**SHAPE, "folder": "a|b<script>\nc"}
    write(study / "evil", "baseline", shape=evil, timings=[timing()])
    text = tables.to_markdown(load([study]), "1 < 2", ["plot.png"])
    assert text.startswith("# 1 &lt; 2\n")
    assert "## a\\|b&lt;script> c resnet20\n" in text
    assert "<script" not in text
    heads = [line for line in text.splitlines() if line.startswith("| method")]
    assert "control" in heads[1]
    assert "control" not in heads[0]
    assert "pruned" not in heads[0]  # nothing is, in that network
    assert text.rstrip().endswith("![plot.png](plot.png)")
