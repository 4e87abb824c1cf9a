"""From run folders to figures that can be checked by hand."""

import csv
import io
import json

import pytest

from reporting import plots, tables
from reporting.collect import collect
from reporting.summary import answers, lost
from tests.command import ROOT, result, run
from tests.reporting.conftest import SHAPE, timing, write

NETWORK = "cifar100 resnet20"


def cell(study, label):
    return next(c for c in study.cells if c.label == label)


def test_runs_become_cells(study):
    found = collect([study])
    assert [c.label for c in found.cells] == [
        *("dense", "l1 0.3", "l1 0.6", "l1 from scratch 0.6", "l1 random 0.6"),
        *("soft 0.6", "weight 0.6"),
    ]
    l1 = cell(found, "l1 0.6")
    assert l1.mean("top1") == 66.5
    assert l1.spread("top1") == pytest.approx(0.5**0.5)
    assert cell(found, "soft 0.6").spread("top1") is None
    assert [c.label for c in found.cells if c.first.control] == [
        *("l1 from scratch 0.6", "l1 random 0.6"),
    ]
    assert found.engine(NETWORK) == "fused bf16 on a processor, 2 threads"
    assert [run.stage for run in found.lineage(l1.first)] == ["baseline", "pruned", "finetuned"]


def test_what_is_missing_is_listed(study):
    seed = study / "cifar100/resnet20/seed0"
    write(seed / "l1-0.9/pruned", "pruned", "l1-0.9", share=0.1)
    (seed / "soft-0.9/finetuned").mkdir(parents=True)
    (seed / "soft-0.9/finetuned/metrics.jsonl").write_text('{"epoch": 1, "top1": 1.0}\n')
    (seed / "l1-0.3/finetuned/result.json").write_text("{")
    (seed / "weight-0.6/finetuned/benchmark.json").unlink()
    write(seed / "z-again", "finetuned", "soft-0.6", share=0.4, recipe="default")
    tuned = seed / "l1-0.6-random/finetuned/result.json"
    tuned.write_text(tuned.read_text().replace('"epochs": 5', '"epochs": 40'))
    told = "\n".join(collect([study]).problems)
    for line in (
        "l1-0.9/pruned: pruned, but not fine-tuned",
        "soft-0.9/finetuned: unfinished, 1 epochs so far",
        "l1-0.3/finetuned/result.json: damaged",
        f"{NETWORK} soft 0.6: no seed 1",
        "not measured in fused bf16 on a processor, 2 threads: l1 from scratch 0.6, weight 0.6",
        "the same cell and seed as",
        "unequal epochs",
    ):
        assert line in told, line


def test_answers(study):
    best, pays, separable = answers(collect([study])).values()
    (first, second) = best
    assert first.startswith(f"{NETWORK}, 0.3 pruned: l1 with 69.90 %, 1.43x fewer effective MACs")
    assert "0.6 pruned: weight with 70.20 %, 2.50x" in second
    assert "then l1 with 66.50 ± 0.71 (n=2) %, 2.50x" in second
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


def edit(folder, change):
    file = folder / "result.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


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


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(study):
    folder = study / "cifar100/resnet20/seed1/l1-0.6/finetuned"
    edit(folder, lambda r: r["arguments"].update(batch_size=1024))
    found = collect([study])
    assert cell(found, "l1 0.6").seeds == {0}
    assert any("left out, other batch_size than" in line for line in found.problems)


def test_timings_of_other_networks_are_left_out(study):
    seed = study / "cifar100/resnet20/seed0"
    for name, key in (("l1-0.6", "sha256"), ("soft-0.6", "reference")):
        file = seed / name / "finetuned/benchmark.json"
        rows = json.loads(file.read_text())
        file.write_text(json.dumps([{**row, key: "another"} for row in rows]))
    (seed / "weight-0.6/finetuned/benchmark.json").write_text("[{")
    found = collect([study])
    assert all(
        not cell(found, label).first.speeds for label in ("l1 0.6", "soft 0.6", "weight 0.6")
    )
    told = "\n".join(found.problems)
    assert "a timing of another checkpoint" in told
    assert "timed against baseline, not the dense network" in told
    assert "benchmark.json: cannot be read" in told


def test_machines_are_not_mixed(study):
    file = study / "cifar100/resnet20/seed0/baseline/benchmark.json"
    rows = json.loads(file.read_text())
    more = [{**r, "machine": {**r["machine"], "threads": 64}, "latency_ms": 1e3} for r in rows]
    file.write_text(json.dumps([*rows, *more]))
    found = collect([study])
    assert cell(found, "dense").mean("latency_ms", found.engine(NETWORK)) == 2.0


def test_older_results_and_unmeasured_ones(study):
    root = study / "cifar100/resnet20"
    edit(root / "seed0/weight-0.6/finetuned", lambda r: r.pop("sha256"))
    edit(root / "seed0/l1-0.3/pruned", lambda r: r.update(top1=None))
    found = collect([study])
    assert any("of an older version" in line for line in found.problems)
    assert len(found.lineage(cell(found, "l1 0.3").first)) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("result.json", change) for change in (
            {"tag": "weird"}, {"tag": 5}, {"top1": None}, {"widths": None}, {"machine": "x"},
            {"seed": "x"}, {"sha256": None}, {"effective_macs": None}, {"dataset": None},
            {"arguments": {**SHAPE, "depth": 21}}, {"arguments": {**SHAPE, "arch": "vgg"}},
            {"arguments": []}, {"arguments": {**SHAPE, "epochs": "9"}}, {"effective_macs": 0},
        )),
        *(("metrics.jsonl", line) for line in ("[1,2]", "{}", '{"epoch": 1}', "3", "{")),
        *(("benchmark.json", text) for text in ("3", "{}", "[3]", "[{}]", "[[]]", "[")),
        *(("../../sensitivity/l1-inner-abc.json", text) for text in (
            "3", "[1]", '{"drops": [1]}', '{"drops": {"a": 1}}', '{"drops": {"a": {}}}', "{",
            '{"drops": {"a": {"x": 1}}}', '{"drops": {"a": {"0.1": 1}, "b": {"0.2": 1}}}',
        )),
    ],
)  # fmt: skip
def test_damage_is_listed_and_the_rest_reported(study, tmp_path, name, content):
    folder = study / "cifar100/resnet20/seed0/l1-0.3/finetuned"
    if isinstance(content, dict):
        edit(folder, lambda r: r.update(content))
    else:
        (folder / name).write_text(content)
    found = collect([study])
    if "metrics" in name or "sensitivity" in name:
        assert plots.figures(found)
    assert tables.to_csv(found)
    assert answers(found)
    assert any(name.split("/")[-1] in line or "timing" in line for line in found.problems)


def test_a_trial_does_not_throw_the_seeds_out(study):
    trial = study / "cifar100/a-trial"  # comes first
    dense = write(trial / "whole", "baseline", top1=5.0, seed=7, train_images=200)
    like = {"share": 0.4, "seed": 7, "recipe": "default"}
    cut = write(trial / "cut", "pruned", "l1-0.6", parent=dense, epochs=None, **like)
    write(trial / "tuned", "finetuned", "l1-0.6", parent=cut, **like)
    found = collect([study])
    assert cell(found, "dense").seeds == cell(found, "l1 0.6").seeds == {0, 1}
    for name in ("whole", "tuned"):
        (line,) = (line for line in found.problems if f"a-trial/{name}: left out" in line)
        assert "train_images" in line


def test_stages_whose_parents_are_not_here(study):
    seed = study / "cifar100/resnet20/seed0"
    (seed / "baseline/result.json").unlink()
    edit(seed / "soft-0.6/pruned", lambda r: r["arguments"].update(parent=r["sha256"]))
    found = collect([study])
    assert found.epochs(cell(found, "l1 0.6")) == 10  # as that of the seed whose parents are here
    assert found.epochs(cell(found, "soft 0.6")) == 5
    assert any("l1-0.6/pruned: the stage that it came from" in line for line in found.problems)


def test_times_of_a_later_seed_count_too(study):
    for file in study.glob("cifar100/resnet20/seed0/**/benchmark.json"):
        file.unlink()
    for name, speedup in (("baseline", 1.0), ("l1-0.6/finetuned", 2.0)):
        file = study / f"cifar100/resnet20/seed1/{name}/benchmark.json"
        (row, *_) = json.loads(file.read_text())
        file.write_text(json.dumps([{**row, "measured_speedup": speedup}]))
    found = collect([study])
    table = list(csv.DictReader(io.StringIO(tables.to_csv(found))))
    assert [row["time x"] for row in table if row["seeds"] == "2"][:2] == ["1.0", "2.0"]
    assert len(tables.engine_rows(found)) == 3


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


def test_links_are_followed_and_folders_given_twice_count_once(study, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/cifar100").symlink_to(study / "cifar100")
    assert len(collect([tmp_path / "linked"]).finished) == len(collect([study]).finished)
    assert len(collect([study, study / "cifar100"]).finished) == len(collect([study]).finished)


def test_networks_for_other_images_are_other_networks(study):
    write(study / "large", "baseline", shape={**SHAPE, "image_size": 64})
    assert collect([study]).networks == [NETWORK, f"{NETWORK} 64px"]


def test_networks_pruned_twice_and_cells_of_equal_cost(study):
    seed = study / "cifar100/resnet20/seed0"
    write(seed / "twice", "finetuned", "l1-0.3+l1-0.5", share=0.4, top1=65.0)
    write(seed / "same", "finetuned", "l1-0.5", share=0.4, top1=65.0)
    found = collect([study])
    assert cell(found, "l1+l1 0.3+0.5").mean("top1") == 65.0
    assert plots.figures(found)  # two cells of l1 with the same MACs


def test_separable_beside_standard(study):
    for arch, dense, pruned in (("resnet", 70.0, (66.0, 0.25)), ("resnet_de", 60.0, (57.0, 0.5))):
        shape = {**SHAPE, "arch": arch, "depth": 26, "width": 64, "shortcut": "B"}
        root = study / f"cifar100/{arch}26/seed0"
        write(root / "baseline", "baseline", top1=dense, shape=shape)
        left = dict(zip(("top1", "share"), pruned, strict=True))
        write(root / "l1-0.6/finetuned", "finetuned", "l1-0.6", shape=shape, **left)
    (line,) = list(answers(collect([study])).values())[2]
    assert "resnet_de26 loses more than cifar100 resnet26 in 0 of 1 cases" in line
    assert "of the same amount, -1.00 points on average" in line
    assert "l1 0.6: 4.00 for 4.00x fewer (n=1) and 3.00 for 2.00x fewer (n=1)" in line
    # Half way to a quarter of the MACs, on the logarithm, lie half of the 4 points.
    assert line.endswith("standard interpolated: l1 2.00x: 2.00 and 3.00.")


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


def test_every_plot_is_drawn(study):
    figures = plots.figures(collect([study]))
    assert figures.keys() == {
        *("accuracy-macs", "accuracy-size", "accuracy-latency", "accuracy-time", "widths"),
        *("training", "churn", "sensitivity-cifar100-resnet20-seed0-l1-inner-abc"),
    }
    for figure in figures.values():
        svg = plots.to_svg(figure)
        assert "currentColor" in svg
        assert plots.INK not in svg
        assert plots.to_png(figure).startswith(b"\x89PNG")


def test_words_on_plots_stand_clear_of_each_other(study):
    """With three networks side by side and one below, whose names and times' labels are long."""
    for arch, depth in (("resnet", 26), ("resnet_de", 26), ("resnet", 50)):
        shape = {**SHAPE, "arch": arch, "depth": depth, "shortcut": "B"}
        root = study / f"cifar100/{arch}{depth}w16/seed0"
        like = {"shape": shape, "speeds": [timing()]}
        dense = write(root / "baseline", "baseline", curve=[{"epoch": 1, "top1": 9.0}], **like)
        like["speeds"] = [timing(reference=dense)]
        write(root / "l1-0.6/finetuned", "finetuned", "l1-0.6", share=0.4, top1=66.0, **like)
    figures = plots.figures(collect([study]))
    panels = figures["accuracy-time"].axes
    assert len(panels) == 4
    assert all(
        tick.label1.get_visible() for axes in panels for tick in axes.xaxis.get_major_ticks()
    )
    for name, figure in figures.items():
        figure.draw_without_rendering()
        words = [*figure.legends]
        words += [
            w for axes in figure.axes for w in (axes.title, axes.xaxis.label, axes.yaxis.label)
        ]
        boxes = [(word, word.get_window_extent()) for word in words]
        boxes = [(word, box) for word, box in boxes if box.width > 1]
        for i, (word, box) in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0, (name, word)
            assert box.x1 <= figure.bbox.x1, (name, word)
            assert figure.bbox.y0 <= box.y0, (name, word)
            assert box.y1 <= figure.bbox.y1, (name, word)
            assert not any(box.overlaps(other) for _, other in boxes[:i]), (name, word)


def test_colour_and_marker_tell_series_apart(study):
    for variant in ("global", "taylor", "all"):
        write(study / variant, "finetuned", f"l1-0.5-{variant}", share=0.5)
    found = collect([study])
    looks = {}
    for each in found.cells:
        series = each.first.series
        looks.setdefault(series, set()).add((plots.colour(each.first), plots.marker(found, series)))
    assert all(len(look) == 1 for look in looks.values())
    assert len(set().union(*looks.values())) == len(looks)
    blue = {plots.colour(c.first) for c in found.cells if c.first.series in ("l1", "l1 all")}
    assert len(blue) == 1  # the method has the colour


def test_published_figures_stand_where_their_speed_up_puts_them(study):
    points = [{"dataset": "cifar100", "network": "resnet20", "speedup": 2, "top1": 68.0}]
    points[0]["method"] = "theirs"
    figure = plots.figures(collect([study]), points)["accuracy-macs"]
    (mark,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert mark.get_xydata().tolist() == [[20.0, 68.0]]


def test_the_published_figures_of_this_repository_are_sound():
    points = json.loads((ROOT / "docs/published.json").read_text())
    assert all(1 <= p["speedup"] < 20 and 50 < p["top1"] < 100 and p["source"] for p in points)
    assert {"cifar10", "cifar100"} == {p["dataset"] for p in points}


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
    again = run("report.py", study, "--write", readme, "--published", published, cwd=tmp_path)
    assert result(again)["runs"] == result(told)["runs"]  # its own output is no run
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert readme.read_text() == text


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
    point = dict.fromkeys(("dataset", "network", "method", "source"), "x")
    infinite = [{**point, "top1": 70.0, "speedup": float("inf")}]
    (tmp_path / "infinite.json").write_text(json.dumps(infinite))
    told = run("report.py", *flags, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (code, "")
    assert message in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
    assert not (study / "report").exists()
