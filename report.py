"""Stage 5: what did all that come to? Tables, plots and one page, from run folders.

    python report.py runs/cifar100
    python report.py runs --save report --published docs/published.json
    python report.py docs/results --save docs/results --readme README.md

Reads every run folder below the given ones (result.json, metrics.jsonl and benchmark.json; no
weights), takes runs that differ only in their seed together, and writes report.html (one file,
needs no network), report.md, report.csv and plots as PNG. What is unfinished or missing is listed.
"""

import argparse
import json
import os
from pathlib import Path

from reporting import page, plots, tables
from reporting.collect import Study, collect
from reporting.summary import answers
from utils import cli
from utils.files import write_atomically, write_text
from utils.log import say

BEGIN, END = "<!-- results -->", "<!-- /results -->"
# Of the README's table: what a visitor wants to know first.
HEADLINE = ("network", "method", "pruned", "seeds", "top-1 %", "±", "lost", "MACs x")
HEADLINE += ("params M", "nonzero M", "time x at 1", "time x", "compressed MB")


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__)
    p.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="with run folders below")
    p.add_argument("--save", type=Path, metavar="DIR", help="(default: report in the first DIR)")
    p.add_argument("--title", default="What pruning did", help="of the page")
    p.add_argument("--published", type=Path, metavar="FILE", help="figures of others to overlay")
    p.add_argument("--readme", type=Path, metavar="FILE", help="rewrite its block of results")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def main(args: argparse.Namespace) -> dict:
    published = read_published(args.published) if args.published else []
    readme = read_readme(args.readme) if args.readme else ""
    study = collect(args.folders)
    folder = args.save or args.folders[0] / "report"
    folder.mkdir(parents=True, exist_ok=True)
    summary, figures = answers(study), plots.figures(study, published)
    svgs = {name: plots.to_svg(figure) for name, figure in figures.items()}
    for name, figure in figures.items():
        png = plots.to_png(figure)
        write_atomically(folder / f"{name}.png", lambda file, png=png: file.write(png))
    write_text(folder / "report.csv", tables.to_csv(study))
    write_text(folder / "report.md", markdown(study, summary, list(figures), args.title))
    write_text(folder / "report.html", page.render(study, summary, svgs, published, args.title))
    if args.readme:
        text = with_results(readme, study, summary, folder, args.readme)
        content = text.encode("utf-8", errors="surrogateescape")
        write_atomically(args.readme, lambda file: file.write(content))
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


def read_readme(file: Path) -> str:
    """A Markdown file with a block for the results. Raises ValueError if it has none."""
    text = file.read_bytes().decode("utf-8", errors="surrogateescape")  # and its line ends
    if not (text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)):
        raise ValueError(f"--readme {file}: wants {BEGIN} and then {END}, once each")
    return text


def read_published(file: Path) -> list[dict]:
    """Figures of others: a list of objects with dataset, network, speedup, top1 and source."""
    wanted = {"dataset", "network", "method", "speedup", "top1", "source"}
    try:
        points = json.loads(file.read_text())
        if isinstance(points, list) and all(
            wanted <= point.keys() and float(point["speedup"]) > 0 and float(point["top1"]) >= 0
            for point in points
        ):
            return points
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(
        f"--published {file}: wants a list of objects with {', '.join(sorted(wanted))}"
    )


def markdown(study: Study, summary: dict[str, list[str]], figures: list[str], title: str) -> str:
    """The report as Markdown, beside its plots."""
    parts = [f"# {title}", tables.markdown(study)]
    parts += [_section(question, lines) for question, lines in summary.items()]
    parts += [f"![{name}]({name}.png)" for name in figures]
    if study.problems:
        parts.append(_section("Missing", study.problems))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def with_results(
    readme: str, study: Study, summary: dict[str, list[str]], folder: Path, file: Path
) -> str:
    """The README with the headline table and plot between its markers."""
    before, rest = readme.split(BEGIN)
    plots_at = os.path.relpath(folder, file.parent).replace(os.sep, "/")
    figure = "accuracy-time" if (folder / "accuracy-time.png").is_file() else "accuracy-macs"
    block = [tables.markdown(study, HEADLINE), f"![{figure}]({plots_at}/{figure}.png)"]
    block += ["\n".join(f"- {line}" for lines in summary.values() for line in lines)]
    return before + "\n\n".join((BEGIN, *(b.strip() for b in block), END)) + rest.split(END)[1]


def _section(title: str, lines: list[str]) -> str:
    return "\n".join((f"## {title}", "", *(f"- {line}" for line in lines)))


if __name__ == "__main__":
    cli.run_script(build_parser, main)
