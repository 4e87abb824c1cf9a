"""The command and its page: what is there, where it is folded, and that it works in a browser."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from tests.command import result, run
from tests.reporting.conftest import NETWORK, SHAPE, edit, step, timing, write

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-quic", "--disable-background-networking", "--disable-component-update"]
VOID = {"meta", "use", "path"}


class Page(HTMLParser):
    """Texts by the path of tags that they stand in, but for plots, which are counted."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.plots = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.plots += tag == "svg"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip() and "svg" not in self.open:
            self.texts.append((tuple(self.open), data.strip()))

    def of(self, *tags):
        return [text for path, text in self.texts if path[-len(tags) :] == tags]


def report(study, *flags):
    told = result(run("report.py", study, "--save", study / "report", *flags, cwd=study))
    return told, Page((study / "report/report.html").read_text())


def test_the_command_and_its_page(study):
    told, page = report(study)
    files = {file.name for file in (study / "report").iterdir()}
    assert told == {
        **{"stage": "report", "page": str(study / "report/report.html"), "networks": 1},
        **{"runs": 19, "left_out": []},
    }
    assert page.of("h1") == ["What pruning did"]
    assert page.of("h2") == [NETWORK]
    assert page.of("strong") == ["70.50 ± 0.71 % top-1"]
    heads = page.of("th", "button")
    assert heads[:8] == [
        *("method", "pruned", "top-1 %", "Δ top-1", "params M", "MAC reduction", "speedup"),
        "latency ms",
    ]
    assert len(page.of("tr")) == 0
    assert page.of("summary")[:4] == [
        *("More plots", "Images/s at the best batch (speedup)"),
        *("Milliseconds for one image (speedup)", "Lineage, settings and engines of each run"),
    ]
    assert not any("Left out" in text for text in page.of("summary"))
    assert page.plots == len([name for name in files if name.endswith(".png")]) == 9
    assert files >= {"report.csv", "report.md", "cifar100-resnet20-top-1-against-speedup.png"}
    runs = " ".join(page.of("details", "p"))
    assert "eager bf16: 2.00 ms, 500 images/s" in runs
    assert '"lr' not in page.of("p")[0]
    assert page.of("p")[0] == "19 runs; times: fused bf16 on a processor, 2 threads"


def test_rows_are_grouped_by_network_and_only_certain_times_are_told(study):
    write(study / "other", "baseline", shape={**SHAPE, "depth": 32})
    for seed, speedup in enumerate(("latency_speedup", "measured_speedup")):
        file = study / f"seed{seed}/l1-6/end/benchmark.json"
        edit(file, lambda rows, speedup=speedup: rows[0].update(timing(1.1, uncertain=[speedup])))
    _, page = report(study)
    assert page.of("th", "span") == [NETWORK, "cifar100 resnet32"]
    assert len(page.of("strong")) == 2
    told = page.of("details", "p")
    assert {"fused bf16: 1,100 images/s", "fused bf16: 1.82 ms"} <= {*told}


def test_what_is_left_out_is_folded_and_counted(study):
    (study / "seed0/soft/end/result.json").write_text("{")
    told, page = report(study)
    assert len(told["left_out"]) == 2  # and what it came from has no successor
    assert "Left out: 2" in page.of("summary")
    assert set(told["left_out"]) <= set(page.of("details", "p"))
    assert told["runs"] == 18


def test_what_is_printed_is_escaped(study):
    evil = "<script>alert(1)"
    write(study / evil, "baseline", shape={**SHAPE, "folder": evil}, seed=7)
    file = study / "seed0/l1-6/end/benchmark.json"
    edit(file, lambda rows: rows[0].update(remarks=[evil]))
    page = report(study, "--title", evil)[1]
    assert page.of("h1") == page.of("title") == [evil]
    assert any(evil in text for text in page.of("details", "p"))
    text = (study / "report/report.html").read_text()
    assert "<script>alert" not in text
    assert "{{" not in text
    assert f"{evil} resnet20" in page.of("h2")
    assert f"{evil} resnet20" in page.of("th", "span")


def test_braces_in_names_are_no_placeholders(study):
    page = report(study, "--title", "{{table}}")[1]
    assert page.of("h1") == ["{{table}}"]


def test_names_that_are_no_text_do_not_stop_it(study):
    file = (study / "seed0/soft").rename(
        study / "seed0" / b"\xff\xfe".decode(errors="surrogateescape")
    )
    assert file.is_dir()
    told, page = report(study)
    assert told["runs"] == 19
    assert any("??" in text for text in page.of("summary"))


def test_one_machine_at_a_time(study):
    other = {"device": "cpu", "name": "Other|<b>", "threads": 1}
    for file in study.glob("seed0/baseline/benchmark.json"):
        edit(file, lambda rows: rows.append({**rows[0], "machine": other, "latency_ms": 9}))
    page = report(study, "--machine", "other")[1]
    assert page.of("p")[0].endswith("fused bf16 on Other|<b>, 1 threads")
    text = (study / "report/report.md").read_text()
    assert "fused bf16 on Other\\|&lt;b>, 1 threads" in text
    process = run("report.py", study, "--machine", "none", cwd=study)
    assert process.returncode == 2
    assert process.stdout == ""
    assert "--machine none: not among those timed on: a processor" in process.stderr


def test_a_study_of_one_network_that_nobody_timed(tmp_path):
    write(tmp_path / "a", "baseline")
    told, page = report(tmp_path)
    assert told["networks"] == 1
    assert "speedup" not in page.of("button")
    assert page.of("h2") == [NETWORK]  # with its curve
    with (tmp_path / "report/report.csv").open() as file:
        assert len(list(csv.reader(file))) == 2


def test_no_heading_without_content(tmp_path):
    write(tmp_path / "a", "baseline")
    (tmp_path / "a/metrics.jsonl").unlink()
    page = report(tmp_path)[1]
    assert page.of("h2") == []
    assert "More plots" not in page.of("summary")


# Runs before and after the page's own script, and leaves what it saw in the document.
BEFORE = """<script>
const complaints = [];
for (const kind of ["error", "warn"])
  console[kind] = (...words) => complaints.push(words.join(" "));
addEventListener("error", event => complaints.push(event.message));
</script>"""
AFTER = """<script>
const seen = {}, all = selector => [...document.querySelectorAll(selector)];
const rows = () => all("#table tbody tr").filter(row => row.cells.length > 1);
const column = name => all("thead th").findIndex(head => head.textContent === name);
const values = name => rows().map(row => row.cells[column(name)].textContent);
const press = name => all("thead button")[column(name)].click();
seen.all = values("method");
press("top-1 %"); seen.rising = values("top-1 %");
press("top-1 %"); seen.falling = values("top-1 %");
press("Δ top-1"); seen.differences = values("Δ top-1");
press("method"); seen.methods = values("method");
seen.first = all("#table tbody tr")[0].textContent;
const shown = head => head.offsetWidth > 0;
const visible = () => all("thead th").filter(shown).map(head => head.textContent);
seen.main = visible();
seen.overflow = document.documentElement.scrollWidth - innerWidth;
document.querySelector("#more").click(); seen.every = visible();
const box = document.querySelector("#table"); box.scrollLeft = 500;
seen.scrolled = box.scrollLeft;
const left = cell => cell.getBoundingClientRect().left;
seen.stuck = all("#table tbody td:first-child").every(cell => left(cell) < 60);
const plots = all("figure svg").filter(svg => svg.checkVisibility());
seen.plots = plots.map(svg => svg.getBoundingClientRect().width);
seen.complaints = complaints;
const out = document.createElement("pre");
out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(study, tmp_path):
    report(study)
    page = (study / "report/report.html").read_text()
    assert not re.search(r'(?:src|href)="?http', page)  # self-contained
    probe = tmp_path / "probe.html"
    probe.write_text(page.replace("<style>", BEFORE + "<style>", 1).replace("</html>", AFTER))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *FLAGS, profile, "--window-size=600,900", "--dump-dom", probe.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S)[1].replace("&amp;", "&"))
    assert seen["complaints"] == []
    assert len(seen["all"]) == 8
    numbers = [float(text.split()[0]) for text in seen["rising"]]
    assert numbers == sorted(numbers)
    assert seen["falling"] == seen["rising"][::-1]
    differences = [float(text.split()[0]) for text in seen["differences"][:-1]]
    assert differences == sorted(differences)
    assert seen["differences"][-1] == ""  # what is not known comes last
    assert seen["methods"] == sorted(seen["all"])
    assert seen["first"] == NETWORK
    assert len(seen["main"]) == 8
    assert len(seen["every"]) > 15
    assert seen["overflow"] <= 0
    assert seen["scrolled"] == 500
    assert seen["stuck"]
    assert len(seen["plots"]) == 2  # the others are folded
    assert min(seen["plots"]) > 500


def test_figures_whose_names_look_alike_have_files_of_their_own(study):
    write(study / "stages", "finetuned", step(ratio=(0.5, 0.3, 0.1)), share=0.4)
    write(study / "thrice", "finetuned", *(step(ratio=r) for r in (0.5, 0.3, 0.1)), share=0.4)
    long = {**SHAPE, "dataset": "folder", "folder": f"/{'long ' * 50}"}
    write(study / "long", "baseline", shape=long)
    report(study)
    names = re.findall(r"!\[.*\]\((.+\.png)\)", (study / "report/report.md").read_text())
    assert len({*names}) == len(names) == len(list((study / "report").glob("*.png")))
    assert sum("50-30-10" in name for name in names) == 2


@pytest.mark.parametrize("save", ["file", "file/below"])
def test_where_no_folder_can_be_made_the_report_says_so(study, save):
    (study / "file").touch()
    done = run("report.py", study, "--save", study / save, cwd=study)
    assert done.returncode == 1
    assert re.fullmatch(r"report.py: error: --save .*; choose another folder\n", done.stderr)


def test_a_name_that_the_font_lacks_gives_no_warning(tmp_path):
    write(tmp_path / "a", "baseline", shape={**SHAPE, "dataset": "folder", "folder": "/\u753b"})
    done = run("report.py", tmp_path, cwd=tmp_path)
    assert done.stderr == ""
    assert "\u753b resnet20" in (tmp_path / "report/report.html").read_text()
