"""Answers, tables and the command, with figures that can be checked by hand."""

import csv
import io
import json

import pytest

from reporting import tables
from reporting.collect import collect
from reporting.summary import answers, lost
from tests.command import ROOT, result, run
from tests.reporting.conftest import NETWORK, SHAPE, cell, edit, timing, write


def test_answers(study):
    best, pays, separable = answers(collect([study])).values()
    (first, second) = best
    assert first.startswith(f"{NETWORK}, 0.3 pruned: l1 with 69.90 % (n=1), 1.43x fewer")
    assert "0.6 pruned: weight with 70.20 % (n=1), 2.50x" in second
    assert "then l1 with 66.50 ± 0.71 % (n=2), 2.50x" in second
    assert "less to do: l1" in second
    assert "l1 beats l1 random by 2.00 ± 0.00 points (95 %, n=2)." in second
    assert "l1 beats l1 from scratch by 1.00 ± 0.00 points" in second
    assert "after 10 epochs against 5" in second
    l1, soft, weight = pays
    # Seed 0 alone has these cells: its own dense network, 70.0, is what they are compared with.
    assert "l1 0.3 loses 0.10 points (one seed), after 10 epochs against 5, with 1.43x fewer" in l1
    assert "Time did not: 1.05x" in l1
    assert "no cut by soft stays" in soft
    assert "0.6, loses 10.00 points (one seed)" in soft
    assert "weight 0.6 gains 0.20 points" in weight
    assert "Time did not: 1.00x" in weight
    assert "No separable network" in separable[0]


def test_a_gain_that_chance_may_have_made_is_called_so(study):
    """Seeds 0 and 1 gain 2 and 1.8 points: 1.9 ± 12.71 * 0.141 / sqrt(2)."""
    tuned = study / "cifar100/resnet20/seed1/l1-0.6-random/finetuned"
    told = json.loads((tuned / "result.json").read_text())["top1"]
    edit(tuned, lambda r: r.update(top1=told + 0.2))
    lines = "".join(answers(collect([study]))["Which method is best at each size?"])
    assert "l1 beats l1 random by 1.90 ± 1.27 points (95 %, n=2)" in lines
    edit(tuned, lambda r: r.update(top1=told + 0.5))
    lines = "".join(answers(collect([study]))["Which method is best at each size?"])
    assert "l1 and l1 random cannot be told apart: 1.75 ± 3.18 points (95 %, n=2)" in lines


def test_what_epochs_alone_bring_is_told(study):
    root = study / "cifar100/resnet20"
    for seed in (0, 1):
        where = {"seed": seed, "parent": f"hash of baseline None {seed}"}
        write(root / f"seed{seed}/finetuned", "finetuned", top1=70.5 + seed, **where)
    found = collect([study])
    further = cell(found, "dense further")
    assert further.first.control
    assert lost(found, further) == -0.5
    assert lost(found, cell(found, "l1 0.6")) == 4.0  # against the dense network as it was pruned
    *_, told = answers(found)["Where does pruning pay?"]
    assert told == (
        f"{NETWORK}: the dense network trained further, to 10 epochs against 5, "
        "gains 0.50 ± 0.00 points (95 %, n=2)."
    )
    for seed in (0, 1):
        (root / f"seed{seed}/baseline/result.json").unlink()
    found = collect([study])
    assert any("no dense network" in line for line in found.problems)
    assert answers(found)["Where does pruning pay?"] == []
    assert tables.markdown(found)


def test_seeds_that_agree_exactly_are_still_several(study):
    for file in study.glob("cifar100/resnet20/seed*/l1-0.3/*/result.json"):
        file.unlink()
    told = "".join(answers(collect([study]))["Where does pruning pay?"])
    assert "the nearest, 0.6, loses 4.00 ± 0.00 points (95 %, n=2)" in told


def test_small_studies_link_no_plot_that_is_not_there(tmp_path):
    runs, document, link = tmp_path / "my runs", tmp_path / "D.md", tmp_path / "links/D.md"
    link.parent.mkdir()
    link.symlink_to(document)
    document.write_text("<!-- results -->\n<!-- /results -->\n")
    pruned = write(runs / "pruned", "pruned", "l1-0.6", share=0.4)

    def block():
        result(run("report.py", runs, "--write", link, cwd=tmp_path))
        return document.read_text()

    assert "Nothing that was fine-tuned or trained is here." in block()
    write(runs / "baseline", "baseline")
    assert "![" not in block()
    write(runs / "tuned", "finetuned", "l1-0.6", share=0.4, parent=pruned)
    assert "](my%20runs/report/accuracy-macs.png)" in block()
    assert "images/s" not in block()  # nobody measured them
    assert link.is_symlink()


def test_separable_beside_standard(study):
    for arch, dense, pruned in (("resnet", 70.0, (66.0, 0.25)), ("resnet_de", 60.0, (57.0, 0.5))):
        shape = {**SHAPE, "arch": arch, "depth": 26, "width": 64, "shortcut": "B"}
        root = study / f"cifar100/{arch}26/seed0"
        write(root / "baseline", "baseline", top1=dense, shape=shape)
        left = dict(zip(("top1", "share"), pruned, strict=True))
        write(root / "l1-0.6/finetuned", "finetuned", "l1-0.6", shape=shape, **left)
        tag = {"resnet": "soft-0.9", "resnet_de": "soft-0.5"}[arch]
        write(root / f"{tag}/finetuned", "finetuned", tag, shape=shape, **left)
    counted, line, unequal = list(answers(collect([study])).values())[2]
    assert "resnet_de26 loses more than cifar100 resnet26 in 0 of 1 cases" in counted
    assert "of the same amount, -1.00 points on average" in counted
    assert "cifar100 resnet26 and cifar100 resnet_de26, l1: points lost and MACs: 0.6: " in line
    assert "0.6: 4.00 for 4.00x fewer (n=1) and 3.00 for 2.00x fewer (n=1)" in line
    # Half way to a quarter of the MACs, on the logarithm, lie half of the 4 points.
    assert line.endswith("standard interpolated: 2.00x: 2.00 and 3.00.")
    assert "soft: For equally many times fewer MACs" in unequal
    assert unequal.endswith("standard interpolated: 2.00x: 2.00 and 3.00.")


def test_tables_agree_with_the_runs(study):
    found = collect([study])
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(found))))
    l1 = next(row for row in rows if (row["method"], row["pruned"]) == ("l1", "0.6"))
    assert float(l1["top-1 %"]) == 66.5
    assert float(l1["lost"]) == 4.0
    soft = next(row for row in rows if row["method"] == "soft")
    assert float(soft["lost"]) == 10.0  # seed by seed
    assert float(l1["MACs x"]) == pytest.approx(2.5)
    assert float(l1["time x"]) == 2.4
    assert float(l1["params M"]) == 0.4
    text = tables.markdown(found)
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + len(found.cells)
    assert "CUDA ms" not in text  # nobody measured it


def test_the_command(study, tmp_path):
    readme = tmp_path / "README.md"
    prose = "says that `<!-- results -->` and <!-- /results --> are marks, or <!-- report -->\n"
    readme.write_text(f"before\n{prose}<!-- results -->\nold\n<!-- /results -->\nafter\n")
    published = ROOT / "docs/published.json"
    told = run("report.py", study, "--write", readme, "--published", published, cwd=tmp_path)
    assert result(told)["networks"] == 7
    assert "report.html" in told.stderr
    folder = study / "report"
    names = {file.suffix for file in folder.iterdir()}
    assert names == {".html", ".md", ".csv", ".png"}
    text = readme.read_text()
    before, block = text.split("\n<!-- results -->\n")
    assert before + "\n" == f"before\n{prose}"
    block, after = block.split("\n<!-- /results -->\n")
    assert after == "after\n"
    assert "old" not in block
    assert (
        "| cifar100 resnet20 | l1 | 1 to 2 |  | 69.90<br>1.43x fewer MACs<br>1.05x images/s |"
        in block
    )
    assert "](runs/report/accuracy-time.png)" in text
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    readme.write_bytes(text.replace("\n", "\r\n").encode())
    readme.chmod(0o640)
    again = run("report.py", study, "--write", readme, "--published", published, cwd=tmp_path)
    assert result(again)["runs"] == result(told)["runs"]  # its own output is no run
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert readme.read_bytes().decode() == text.replace("\n", "\r\n")
    assert readme.stat().st_mode & 0o777 == 0o640


def test_markup_in_names_is_harmless(study, tmp_path):
    write(study / "odd", "finetuned", "l1-0.5-<b>bold", share=0.5, speeds=[timing()])
    result(run("report.py", study, "--title", "<script>{{plots}}", cwd=tmp_path))
    page = (study / "report/report.html").read_text()
    assert "<b>bold" not in page
    assert page.count("<h2>Plots</h2>") == 1
    assert "<title>&lt;script&gt;{{plots}}</title>" in page


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["nowhere"], 1, "nowhere: no such folder"),
        (["empty"], 1, "no finished stage"),
        (["runs", "--write", "plain.md"], 2, "wants <!-- results -->"),
        (["runs", "--write", "half.md"], 2, "once each"),
        (["runs", "--write", "crossed.md"], 2, "once each"),
        (["runs", "--write", "none.md"], 1, "none.md"),
        (["runs", "--published", "plain.md"], 2, "list of objects"),
        (["runs", "--published", "infinite.json"], 2, "list of objects"),
        (["runs", "--save", "plain.md"], 2, "that is a file"),
    ],
)
def test_errors(study, tmp_path, flags, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain.md").write_text("no markers")
    (tmp_path / "half.md").write_text("<!-- report -->\n")
    crossed = ("results", "report", "/results", "/report")
    (tmp_path / "crossed.md").write_text("".join(f"<!-- {mark} -->\n" for mark in crossed))
    point = dict.fromkeys(("dataset", "network", "method", "source"), "x")
    infinite = [{**point, "top1": 70.0, "speedup": float("inf")}]
    (tmp_path / "infinite.json").write_text(json.dumps(infinite))
    told = run("report.py", *flags, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (code, "")
    assert message in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
    assert not (study / "report").exists()
