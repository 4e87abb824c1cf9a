"""Stage 5: what did all that come to? Tables, plots and one page, from run folders.

    python report.py runs/cifar100
    python report.py runs --save report --published docs/published.json
    python report.py docs/results --save docs/results --write README.md docs/results.md

Reads every run folder below the given ones (result.json, metrics.jsonl and benchmark.json; no
weights), takes runs that differ only in their seed together, and writes report.html (one file,
needs no network), report.md, report.csv and plots as PNG. What is unfinished or missing is listed.
"""

import argparse
import json
import math
import os
import re
from pathlib import Path
from urllib.parse import quote

from reporting import page, plots, tables
from reporting.collect import Study, collect, machines
from reporting.summary import answers
from utils import cli
from utils.files import write_atomically
from utils.log import say

BLOCKS = ("results", "report")  # of Markdown files: in short, and whole
MARK = re.compile(rf"^<!-- (/?(?:{'|'.join(BLOCKS)})) -->\r?$", re.MULTILINE)


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="with run folders below")
    p.add_argument("--save", type=Path, metavar="DIR", help="(default: report in the first DIR)")
    p.add_argument("--title", default="What pruning did", help="of the page")
    p.add_argument("--published", type=Path, metavar="FILE", help="figures of others to overlay")
    p.add_argument(
        "--write",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="Markdown whose text between <!-- results --> and <!-- /results --> becomes the short "
        "table, and between <!-- report --> and <!-- /report --> the whole report",
    )
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def main(args: argparse.Namespace) -> dict:
    published = read_published(args.published) if args.published else []
    documents = {file: read_document(file) for file in args.write}
    study = collect(args.folders)
    folder = args.save or args.folders[0] / "report"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save {folder}: that is a file; name a folder")
    summary, figures = answers(study), plots.figures(study, published)
    svgs = {name: plots.to_svg(figure) for name, figure in figures.items()}
    whole = blocks(study, summary, list(figures))["report"]
    files = {folder / f"{name}.png": plots.to_png(figure) for name, figure in figures.items()}
    files[folder / "report.csv"] = _bytes(tables.to_csv(study))
    files[folder / "report.md"] = _bytes(f"# {args.title}\n\n{whole}\n")
    files[folder / "report.html"] = _bytes(page.render(study, summary, svgs, published, args.title))
    for document, text in documents.items():
        at = os.path.relpath(folder.resolve(), document.resolve().parent).replace(os.sep, "/")
        at = quote(os.fsencode(at)) + "/"
        for name, block in blocks(study, summary, list(figures), at).items():
            text = with_block(text, name, block)
        files[document.resolve()] = _bytes(text)
    for file, content in files.items():
        write_atomically(file, lambda to, content=content: to.write(content))
    for question, lines in summary.items():
        say("\n".join((question, *(f"  {line}" for line in lines))))
    for problem in study.problems:
        say(f"missing: {problem}")
    say(f"report: {folder / 'report.html'}")
    return {
        "stage": "report",
        "page": str(folder / "report.html"),
        "networks": len(study.cells),
        "runs": sum(len(cell.runs) for cell in study.cells),
        "problems": study.problems,
        "summary": summary,
    }


def _bytes(text: str) -> bytes:
    """With names of files that are no UTF-8 as they were."""
    return text.encode("utf-8", errors="surrogateescape")


def read_document(file: Path) -> str:
    """A Markdown file with blocks to rewrite. Raises ValueError if it has none, or half of one."""
    text = file.read_bytes().decode("utf-8", errors="surrogateescape")  # and its line ends
    marks = MARK.findall(text)
    pairs = [(name, f"/{name}") for name in dict.fromkeys(marks[::2])]
    if not marks or marks != [mark for pair in pairs for mark in pair]:
        told = " or ".join(f"<!-- {name} --> and then <!-- /{name} -->" for name in BLOCKS)
        raise ValueError(f"--write {file}: wants {told}, on lines of their own, once each")
    return text


def with_block(text: str, name: str, block: str) -> str:
    """The text with the content of a block replaced, if it has that block."""
    at = {mark[1]: mark for mark in MARK.finditer(text)}
    if name not in at:
        return text
    content = f"{at[name][0]}\n{block}\n"
    if at[name][0].endswith("\r"):
        content = content.replace("\r", "").replace("\n", "\r\n")
    return text[: at[name].start()] + content + text[at[f"/{name}"].start() :]


def read_published(file: Path) -> list[dict]:
    """Figures of others: a list of objects with dataset, network, speedup, top1 and source."""
    wanted = {"dataset", "network", "method", "speedup", "top1", "source"}
    try:
        points = json.loads(file.read_text())
        if isinstance(points, list) and all(
            wanted <= point.keys() and 0 < point["speedup"] < math.inf and 0 <= point["top1"] <= 100
            for point in points
        ):
            return points
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(
        f"--published {file}: wants a list of objects with {', '.join(sorted(wanted))}"
    )


def blocks(
    study: Study, summary: dict[str, list[str]], figures: list[str], at: str = ""
) -> dict[str, str]:
    """Name -> Markdown: the results in short, and the whole report; plots lie `at` a folder."""

    def plot(name: str) -> str:
        return f"![{name}]({at}{quote(name)}.png)"

    first = [name for name in ("accuracy-time", "accuracy-macs") if name in figures][:1]
    short = [tables.headline(study), *map(plot, first)]
    whole = [tables.markdown(study)]
    whole += [_section(question, lines) for question, lines in summary.items()]
    whole += [plot(name) for name in figures]
    if engines := tables.engines_markdown(study):
        whole.append("## In each engine\n\n" + engines)
    whole.append(_section("Machines", machines(study)))
    if study.problems:
        whole.append(_section("Missing", study.problems))
    parts = dict(zip(BLOCKS, (short, whole), strict=True))
    return {name: "\n\n".join(part.strip() for part in own) for name, own in parts.items()}


def _section(title: str, lines: list[str]) -> str:
    return "\n".join((f"## {title}", "", *(f"- {line}" for line in lines)))


if __name__ == "__main__":
    cli.run_script(build_parser, main)
