"""The page in a real browser: it sorts, filters, and has nothing to complain about."""

import json
import re
import shutil
import subprocess

import pytest

from tests.command import result, run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-quic", "--disable-background-networking", "--disable-component-update"]
# Runs before and after the page's own script, and leaves what it saw in the document.
BEFORE = """<script>
const complaints = [];
for (const kind of ["error", "warn"])
  console[kind] = (...words) => complaints.push(words.join(" "));
addEventListener("error", event => complaints.push(event.message));
</script>"""
AFTER = """<script>
const seen = {}, all = selector => [...document.querySelectorAll(selector)];
const rows = () => all("#main tbody tr").filter(row => !row.hidden);
const column = name => all("#main th").findIndex(head => head.textContent === name);
const values = name => rows().map(row => row.cells[column(name)].textContent);
const press = name => all("#main th button")[column(name)].click();
const type = words => { filter.value = words; filter.dispatchEvent(new Event("input")); };
seen.all = values("method");
press("top-1 %"); seen.rising = values("top-1 %");
press("top-1 %"); seen.falling = values("top-1 %");
press("±"); seen.spread = values("±");
press("method"); seen.methods = values("method");
type("random 0.6"); seen.filtered = values("method");
seen.count = document.querySelector("#count").textContent;
type("no such thing"); seen.none = values("method");
type(""); seen.back = values("method").length;
seen.plots = all("figure svg").map(svg => svg.getBoundingClientRect().width);
seen.overflow = document.documentElement.scrollWidth - innerWidth;
seen.complaints = complaints;
const out = document.createElement("pre");
out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(study, tmp_path):
    result(run("report.py", study, cwd=tmp_path))
    page = (study / "report/report.html").read_text()
    assert not re.search(r'(?:src|href)="?http', page)  # self-contained
    probe = tmp_path / "probe.html"
    probe.write_text(page.replace("<style>", BEFORE + "<style>", 1).replace("</html>", AFTER))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *FLAGS, profile, "--window-size=1280,900", "--dump-dom", probe.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S)[1])
    assert seen["complaints"] == []
    assert len(seen["all"]) == 7
    numbers = [float(text) for text in seen["rising"]]
    assert numbers == sorted(numbers)
    assert seen["falling"] == seen["rising"][::-1]
    assert seen["spread"].index("") == sum(text != "" for text in seen["spread"])  # empty last
    assert seen["methods"] == sorted(seen["all"])
    assert seen["filtered"] == ["l1 random"]
    assert seen["count"] == "1 of 7 rows"
    assert seen["none"] == []
    assert seen["back"] == 7
    assert len(seen["plots"]) == 8
    assert all(width > 500 for width in seen["plots"])
    assert seen["overflow"] <= 0
