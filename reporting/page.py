"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import tables
from .collect import Study, machines
from .runs import Finished
from .tables import Column

CAPTIONS = {
    "accuracy-macs": "What is left to compute if zero weights cost nothing. Theoretical: dense "
    "kernels multiply the zeros of masked networks like any other number.",
    "accuracy-size": "What is left to store, in parameters that are not zero.",
    "accuracy-latency": "Measured: one image at a time.",
    "accuracy-time": "Measured: the batch size with the best throughput.",
    "widths": "Channels of every convolution; grey is the dense network.",
    "training": "Accuracies are those of the cut network; the last epoch counts.",
    "churn": "How soft pruning changes its mind.",
}


def render(
    study: Study,
    answers: dict[str, list[str]],
    svgs: dict[str, str],
    published: Sequence[dict[str, Any]],
    title: str,
) -> str:
    """The whole page; `svgs` are the plots by name, `published` figures of others."""
    runs = len([run for cell in study.cells for run in cell.runs])
    parts = {
        "title": escape(title),
        "subtitle": f"{len(study.cells)} networks from {runs} runs",
        "answers": "".join(f"<h2>{escape(q)}</h2>{_list(lines)}" for q, lines in answers.items()),
        "networks": "".join(f"<option>{escape(name)}</option>" for name in study.networks),
        "table": _table("main", tables.COLUMNS, tables.rows(study), "control"),
        "note": escape(tables.note(study)),
        "engines": _engines(study),
        "plots": "".join(_figure(name, svg) for name, svg in svgs.items()),
        "published": _published(study, published),
        "problems": _problems(study.problems),
        "lineage": "".join(_lineage(study, run) for cell in study.cells for run in cell.runs),
        "settings": _settings(study),
    }
    page = Path(__file__).with_name("page.html").read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)  # once, not in content


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(
    name: str, columns: Sequence[tables.Column], rows: list[list[Any]], mark: str = ""
) -> str:
    shown = tables.used(rows)

    def kind(index: int) -> str:
        return "" if columns[index].digits is None else ' class="number"'

    head = "".join(f"<th{kind(i)}><button>{escape(columns[i].name)}</button></th>" for i in shown)
    lines = []
    for row in rows:
        cells = "".join(
            f'<td{kind(i)} data-value="{escape(str("" if row[i] is None else row[i]))}">'
            f"{escape(tables.text(row[i], columns[i].digits))}</td>"
            for i in shown
        )
        lines.append(f'<tr class="{mark if mark in row else ""}">{cells}</tr>')
    body = "\n".join(lines)
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _engines(study: Study) -> str:
    rows = tables.engine_rows(study)
    if not rows:
        return ""
    remarks = [
        f"{cell.first.network} {cell.label}, {row['where']}, {line}"
        for cell in study.cells
        for row in cell.speeds
        for line in row["remarks"]
    ]
    why = ""
    if remarks:
        why = f"<details><summary>Why not faster: {len(remarks)} remarks</summary>"
        why += f"{_list(remarks)}</details>"
    table = _table("engines", tables.ENGINE_COLUMNS, rows)
    return f'<h2>In every engine</h2><div class="scroll">{table}</div>{why}'


def _figure(name: str, svg: str) -> str:
    caption = CAPTIONS.get(name, "Points lost on training images when one group is cut alone.")
    return f'<figure id="{escape(name)}">{svg}<figcaption>{caption}</figcaption></figure>'


def _published(study: Study, published: Sequence[dict[str, Any]]) -> str:
    rows = [
        [network, point["method"], point["speedup"], point["top1"], point["source"]]
        for network in study.networks
        for point in published
        if f"{point['dataset']} {point['network']}" == network
    ]
    if not rows:
        return ""
    columns = (Column("network"), Column("method"), Column("MACs x", 2), Column("top-1 %", 2))
    table = _table("published", (*columns, Column("source")), rows)
    return f'<h2>Published by others</h2><div class="scroll">{table}</div>'


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return "<h2>Missing</h2><p>Nothing: every cell has every seed.</p>"
    return f'<h2>Missing</h2><div class="problems">{_list(problems)}</div>'


def _lineage(study: Study, run: Finished) -> str:
    steps = []
    for stage in study.lineage(run):
        result = stage.result
        arguments = {k: v for k, v in result["arguments"].items() if v not in (None, [], False)}
        parent = arguments.pop("parent", None)
        told = ", ".join(f"{k} {json.dumps(v)}" for k, v in arguments.items())
        origin = f", from {parent[:12]}" if parent else ""
        steps.append(
            f"<li>{escape(stage.stage)} {tables.text(result.get('top1'), 2)} %, "
            f"<code>{escape(result['sha256'][:12])}</code>{escape(origin)}: "
            f'<span class="soft">{escape(told)}</span></li>'
        )
    return f"<details><summary>{escape(run.folder)}</summary><ol>{''.join(steps)}</ol></details>"


def _settings(study: Study) -> str:
    told = "<p>The arguments of every stage stand with its network above.</p>"
    return _list(machines(study)) + told
