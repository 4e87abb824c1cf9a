"""The rules of the house: which way imports point, and what a script may do."""

import ast
import importlib

import pytest

from tests.command import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
ORDER = ("models", "pruning", "utils", "measurement", "reporting", "scripts")
MAY_IMPORT = {house: {*ORDER[: index + 1]} - {"scripts"} for index, house in enumerate(ORDER)}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.parent.name if node.level else node.module.split(".")[0]


@pytest.mark.parametrize("house", MAY_IMPORT)
def test_imports_point_one_way(house):
    files = ROOT.glob("*.py") if house == "scripts" else (ROOT / house).rglob("*.py")
    ours = {*MAY_IMPORT, "tests", *SCRIPTS}
    for path in files:
        wrong = set(imported(path)) & ours - MAY_IMPORT[house]
        assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_importing_a_script_does_nothing(script, capsys):
    module = importlib.import_module(script)
    assert callable(module.main)
    assert module.__doc__
    assert f"python {script}.py" in module.__doc__
    assert capsys.readouterr() == ("", "")
