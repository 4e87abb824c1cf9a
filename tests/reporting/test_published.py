"""What this repository publishes: its figures are sound, and the README quotes them as they are."""

import re

from reporting import tables
from reporting.load import load
from tests.command import ROOT

MACHINE = "AMD EPYC 25.17.1"  # where the README's times are from


def test_every_committed_result_is_sound():
    study = load([ROOT / "docs/results"])
    assert study.left_out == []
    for run in study.runs:  # seeds that differ would be paired wrongly
        assert run["seed"] == run["arguments"].get("recipe", run.result)["seed"], run.folder
    assert len(study.runs) == len(list((ROOT / "docs/results").rglob("result.json"))) > 100


def test_the_table_of_the_readme_is_what_the_committed_figures_give():
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"<!-- results -->\n(.*?)<!-- /results -->", text, re.DOTALL)
    head, rule, *quoted = [line for line in block.splitlines() if line.startswith("|")]
    study = load([ROOT / "docs/results"], MACHINE)
    names = tables.NAMES[: tables.MAIN]
    rows = tables.texts(study, study.cells["cifar100 resnet20"])
    table = tables.markdown(names, [row[: tables.MAIN] for row in rows]).splitlines()
    assert [head, rule] == table[:2]
    assert 0 < len(quoted) <= 7
    assert quoted == [line for line in table[2:] if line in quoted]
    assert f"{study.engine} on {study.machine}" in block


def test_its_plots_are_there():
    for document in ("README.md", "docs/results.md"):
        file = ROOT / document
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", file.read_text()):
            assert (file.parent / link).is_file(), link
