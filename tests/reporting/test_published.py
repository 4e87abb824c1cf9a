"""What this repository publishes: its figures are sound, and the README quotes them as they are."""

import re

from reporting import tables
from reporting.load import load
from tests.command import ROOT

COLUMNS = 6  # that the README quotes: no times


def test_every_committed_result_is_sound():
    study = load([ROOT / "docs/results"])
    assert study.left_out == []
    for run in study.runs:  # seeds that differ would be paired wrongly
        assert run["seed"] == run["arguments"].get("recipe", run.result)["seed"], run.folder
    assert len(study.runs) == len(list((ROOT / "docs/results").rglob("result.json"))) > 100


def test_the_tables_of_the_readme_are_what_the_committed_figures_give():
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"<!-- results -->\n(.*?)<!-- /results -->", text, re.DOTALL)
    study = load([ROOT / "docs/results"])
    for network, quoted in zip(("50", "20"), block.strip().split("\n\n"), strict=True):
        names = [f"ResNet-{network}", *tables.NAMES[1:COLUMNS]]
        rows = tables.texts(study, study.cells[f"cifar100 resnet{network}"])
        table = tables.markdown(names, [row[:COLUMNS] for row in rows]).splitlines()
        assert quoted.splitlines() == [line for line in table if line in quoted.splitlines()]
        assert len(quoted.splitlines()) > 5


def test_its_plots_are_there():
    for document in ("README.md", "docs/results.md"):
        file = ROOT / document
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", file.read_text()):
            assert (file.parent / link).is_file(), link
