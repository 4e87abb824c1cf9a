"""Stage 5: what did all that come to? One page, tables and plots, from run folders.

    python report.py runs/cifar100
    python report.py runs --save report --machine EPYC

Reads every run folder below the given ones (result.json, metrics.jsonl and benchmark.json; no
weights), takes runs that differ only in their seed together, and writes report.html (one file,
needs no network), report.md, report.csv and plots as PNG. Times are of one machine. What is
damaged or unfinished is left out by name.
"""

import utils.early  # noqa: F401

import argparse
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from reporting import plots, tables
from reporting.load import Run, Study, lineage, load
from utils import cli
from utils.files import make_folder, write_text


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="with run folders below")
    p.add_argument("--save", type=Path, metavar="DIR", help="(default: report in the first DIR)")
    p.add_argument("--title", default="What pruning did", help="of the page")
    p.add_argument("--machine", metavar="NAME", help="whose times count (default: most timed on)")
    return p


def main(args: argparse.Namespace) -> dict:
    study = load(args.folders, args.machine)
    folder = args.save or args.folders[0] / "report"
    make_folder(folder)
    drawn = {network: plots.plots(study, network) for network in study.cells}
    texts = {"report.html": page(study, args.title, drawn)}
    images = []
    for network, figures in drawn.items():
        for name, figure in figures.items():
            file = re.sub(r"[^\w.]+", "-", f"{network} {name}".lower())[-80:] + ".png"
            images.append(f"{len(images)}-{file}" if file in images else file)
            plots.save(figure, folder / images[-1])
    texts["report.md"] = tables.to_markdown(study, args.title, images)
    texts["report.csv"] = tables.to_csv(study)
    for name, text in texts.items():  # paths may hold what is no text
        write_text(folder / name, text.encode(errors="replace").decode())
    result = {"stage": "report", "page": str(folder / "report.html"), "left_out": study.left_out}
    return {**result, "networks": len(study.cells), "runs": len(study.runs)}


def summary(result: dict) -> str:
    """What a terminal shows of the result."""
    lines = [f"left out: {line}" for line in result["left_out"]]
    return "\n".join([*lines, "{page}: {networks} networks, {runs} runs".format(**result)])


def page(study: Study, title: str, drawn: dict[str, dict]) -> str:
    """The page: one HTML file that needs nothing else."""
    cards = sections = ""
    for network, figures in drawn.items():
        first, *more = tables.card(study, network)
        cards += f"<div>{escape(network)}<strong>{first}</strong>{', '.join(more)}</div>"
        html = {name: f"<figure>{plots.to_svg(f)}</figure>" for name, f in figures.items()}
        first_plots = "".join(html.pop(name, "") for name in plots.FIRST)
        sections += f"<h2>{escape(network)}</h2><div>{first_plots}</div>" * bool(figures)
        sections += _details("More plots", f"<div>{''.join(html.values())}</div>" * bool(html))
        for name in tables.ENGINES:
            if lines := tables.by_engine(study, network, name):
                sections += _details(name, _plain_table(lines))
    runs = "".join(_details(escape(run.folder), _list(_origin(run, study))) for run in study.runs)
    details = _details("Lineage, settings and engines of each run", runs)
    details += _details(f"Left out: {len(study.left_out)}", _list(study.left_out))
    parts = {"title": escape(title), "place": escape(tables.place(study)), "cards": cards}
    parts |= {"table": _table(study), "note": escape(tables.NOTE), "networks": sections + details}
    template = Path(plots.__file__).with_name("page.html").read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)  # not in content


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>" * bool(content)


def _list(lines: list[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _origin(run: Run, study: Study) -> list[str]:
    """The stages that a network went through, and its times in all engines."""
    keys, chain = ("stage", "top1", "sha256", "arguments", "machine"), lineage(run, study.runs)
    lines = [json.dumps({key: stage.result.get(key) for key in keys}) for stage in chain]
    for (machine, engine), row in run.timings.items():
        if machine == study.machine:
            known = (row["latency_ms"], "{:.2f} ms"), (row["images_per_second"], "{:,.0f} images/s")
            times = [form.format(value) for value, form in known if value is not None]
            told = ", ".join(times) or "no certain time"
            lines.append("; ".join([f"{engine}: {told}", *row["remarks"]]))
    return lines


def _plain_table(lines: list[list[str]]) -> str:
    html = ""
    for line in lines:
        tag = "td" if html else "th"
        html += f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in line)}</tr>"
    return f"<div><table>{html}</table></div>"


def _table(study: Study) -> str:
    groups = {network: tables.texts(study, cells) for network, cells in study.cells.items()}
    shown = tables.used([row for rows in groups.values() for row in rows])

    def line(tag: str, cells: Sequence[str], kind: str = "") -> str:
        html = (f'<{tag} class="{"more" * (i >= tables.MAIN)}">{cells[i]}</{tag}>' for i in shown)
        return f'<tr class="{kind}">{"".join(html)}</tr>'

    html = f"<thead>{line('th', [f'<button>{name}</button>' for name in tables.NAMES])}</thead>"
    for network, rows in groups.items():
        html += f'<tbody><tr><th colspan="{len(shown)}"><span>{escape(network)}</span></th></tr>'
        for row in rows:
            html += line(
                "td", list(map(escape, row)), "control" * bool(row[tables.NAMES.index("control")])
            )
    return html


if __name__ == "__main__":
    cli.run_script(build_parser, main, summary)
