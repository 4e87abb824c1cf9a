"""Every plot is drawn, can be read, and shows what was measured."""

import json
import re

from reporting import plots
from reporting.collect import collect
from tests.command import ROOT
from tests.reporting.conftest import MACHINE, SHAPE, timing, write


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


def test_one_amount_has_one_dash_in_all_panels(study):
    """Though another network has only the larger of the amounts."""
    shape = {**SHAPE, "depth": 32}
    curve = [{"epoch": epoch, "top1": 9.0} for epoch in range(1, 6)]
    write(study / "other", "finetuned", "l1-0.6", shape=shape, curve=curve)
    panels = plots.figures(collect([study]))["training"].axes
    keys = [key for axes in panels for key in re.findall(r"0\.6 (\S+?)[,)]", axes.get_xlabel())]
    assert len(keys) > 1
    assert set(keys) == {"--"}


def test_words_on_plots_stand_clear_of_each_other(study):
    """With three networks side by side and one below, whose names and times' labels are long."""
    machine = {**MACHINE, "name": "AMD EPYC 9B14 96-Core Processor 25.17.1", "threads": 16}
    for arch, depth in (("resnet", 26), ("resnet_de", 26), ("resnet", 50)):
        shape = {**SHAPE, "arch": arch, "depth": depth, "shortcut": "B"}
        root = study / f"cifar100/{arch}{depth}w16/seed0"
        like = {"shape": shape, "speeds": [timing(machine=machine)]}
        dense = write(root / "baseline", "baseline", curve=[{"epoch": 1, "top1": 9.0}], **like)
        like["speeds"] = [timing(machine=machine, reference=dense)]
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


def test_noise_in_time_puts_no_network_on_the_front(study):
    file = study / "cifar100/resnet20/seed0/soft-0.6/finetuned/benchmark.json"
    (row,) = json.loads(file.read_text())
    for speedup, on_the_front in ((2.44, False), (2.6, True)):  # l1, more accurate, has 2.4
        file.write_text(json.dumps([{**row, "measured_speedup": speedup}]))
        (axes,) = (a for a in plots.figures(collect([study]))["accuracy-time"].axes if a.lines)
        (front,) = (line for line in axes.lines if line.get_linewidth() == 5)
        assert ((1 / speedup, 60.0) in map(tuple, front.get_xydata())) == on_the_front
