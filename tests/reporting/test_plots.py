"""Every plot that has something to show is drawn, shows what was measured, and can be read."""

import json
import subprocess
import sys

import pytest
from matplotlib.image import imread

from pruning import resolve
from reporting import plots
from reporting.load import load
from tests.command import ROOT
from tests.reporting.conftest import NETWORK, SHAPE, cell, edit, step, timing, write


def drawn(study):
    return plots.plots(load([study]), NETWORK)


def lines(figure):
    """Label -> points of what has a label, as lists of pairs."""
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    return {text: h.lines[0].get_xydata().tolist() for text, h in zip(labels, handles, strict=True)}


def test_every_plot_is_drawn(study, tmp_path):
    figures = drawn(study)
    assert list(figures) == [
        *("Top-1 against speedup", "Top-1 against MACs", "Speedup against MACs"),
        "Training from scratch",
        *("Fine-tuning, nothing pruned", "Fine-tuning, 30 % pruned", "Fine-tuning, 60 % pruned"),
        *("Pruned or restored", "Widths"),
    ]
    for figure in figures.values():
        svg = plots.to_svg(figure)
        assert "currentColor" in svg
        assert plots.INK not in svg
        plots.save(figure, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert len(figure.axes) == 1


def test_points_stand_where_they_were_measured(study):
    figures = drawn(study)
    assert lines(figures["Top-1 against speedup"])["l1"] == [[1.05, 69.9], [2.0, 66.5]]
    assert lines(figures["Top-1 against MACs"])["weight"] == [[2.5, 70.2]]
    assert lines(figures["Speedup against MACs"])["weight"] == [[2.5, 1.0]]
    assert lines(figures["Pruned or restored"]) == {
        "soft 60 %": [[1, 8], [2, 4], [3, 2], [4, 1], [5, 0]]
    }
    assert lines(figures["Training from scratch"])["dense"][-1] == [5, 70.0]
    assert lines(figures["Widths"])["l1, soft 60 %"] == [[1, 6], [2, 6], [3, 6]]


def test_controls_are_hollow_points_without_a_line(study):
    (axes,) = drawn(study)["Top-1 against MACs"].axes
    looks = {
        text: (handle.lines[0].get_markerfacecolor(), handle.lines[0].get_linestyle())
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    assert looks["l1 random"] == looks["l1 from scratch"] == ("none", "None")
    assert looks["l1"][1] == "-"


def test_series_of_one_color_differ_in_marker_and_dash(study):
    for number, more in enumerate(({"allocation": "global"}, {"scope": "all"})):
        write(study / f"{number}", "finetuned", step(**more), share=0.5, top1=60.0)
    (axes,) = drawn(study)["Top-1 against MACs"].axes
    found = [handle.lines[0] for handle in axes.get_legend_handles_labels()[0]]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in found]
    assert len(set(looks)) == len(looks)
    assert [color for color, *_ in looks].count(plots.COLORS["l1"]) == 3


@pytest.mark.parametrize(("speedup", "there"), [(1.02, False), (1.05, True)])
def test_a_plot_within_the_noise_is_left_out(tmp_path, speedup, there):
    dense = write(tmp_path / "a", "baseline", timings=[timing()])
    write(
        tmp_path / "b", "finetuned", step(), share=0.4, timings=[timing(speedup, reference=dense)]
    )
    figures = drawn(tmp_path)
    assert ("Top-1 against speedup" in figures) == there
    assert "Top-1 against MACs" in figures


def test_without_logs_or_cuts_there_are_no_plots_of_them(tmp_path):
    write(tmp_path / "a", "baseline")
    (tmp_path / "a/metrics.jsonl").unlink()
    assert drawn(tmp_path) == {}
    write(tmp_path / "b", "finetuned", step("weight"), nonzero=0.4)
    assert "Widths" not in drawn(tmp_path)


def test_a_single_epoch_is_seen(tmp_path):
    write(tmp_path / "a", "baseline", epochs=1)
    (figure,) = drawn(tmp_path).values()
    (line,) = figure.axes[0].lines
    assert line.get_marker() != "None"
    assert figure.legends == []  # of a single line


def test_words_on_plots_stand_clear_of_each_other(study):
    for seed, name in enumerate(("a-rather-long-criterion", "another-criterion-that-is-long")):
        write(study / name, "finetuned", step(criterion=name), share=0.5, seed=seed)
    for title, figure in drawn(study).items():
        figure.draw_without_rendering()
        (axes,) = figure.axes
        words = [*figure.legends, axes.xaxis.label, axes.yaxis.label]
        boxes = [word.get_window_extent() for word in words]
        for index, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0, title
            assert box.x1 <= figure.bbox.x1, title
            assert figure.bbox.y0 <= box.y0, title
            assert not any(box.overlaps(other) for other in boxes[:index]), title


def test_a_log_without_a_figure_is_left_out_of_its_plot(study):
    file = study / "seed0/soft/end/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    del rows[0]["flipped"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lines(drawn(study)["Pruned or restored"]) == {
        "soft 60 %": [[2, 4], [3, 2], [4, 1], [5, 0]]
    }


def test_sensitivity_is_a_heat_map(tmp_path):
    drops = {
        "layer1.0.conv1": {"0.3": 1.0, "0.6": 5.0},
        "layer1.residual": {"0.3": 2.0, "0.6": 9.0},
    }
    plots.sensitivity(drops, tmp_path / "heat.png")
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    plots.sensitivity({"conv1": {"0.5": 0.0, "0.7": -1.0}}, tmp_path / "flat.png")
    image = imread(tmp_path / "flat.png")
    assert image[len(image) // 2, image.shape[1] // 3, :3].min() > 0.7  # nothing lost: light


def test_drawing_needs_no_screen():
    told = "import reporting.plots, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], cwd=ROOT).returncode == 0


def test_widths_are_of_the_first_seed(study):
    file = study / "seed1/l1-6/end/result.json"
    edit(file, lambda r: r["widths"].update(conv1=1))
    assert lines(drawn(study)["Widths"])["l1, soft 60 %"][0] == [1, 6]
    assert cell(load([study]), "l1", "60 %").runs[1]["widths"]["conv1"] == 1


def test_a_long_legend_does_not_squeeze_the_plot(study):
    for number in range(12):
        more = {"criterion": f"criterion {number}"}
        write(study / f"{number}", "finetuned", step(**more), share=0.5, top1=60.0)
    heights, counts = [], []
    for title, figure in drawn(study).items():
        assert f"{NETWORK}: {title}" in plots.to_svg(figure)
        heights.append(figure.axes[0].get_position().height * figure.get_figheight())
        counts.append(len(lines(figure)))
    assert min(counts) < 3 < 12 < max(counts)
    assert max(heights) - min(heights) < 0.2  # inches, of about 2.3


def test_a_target_and_a_ratio_are_not_joined(study):
    for share in (0.5, 0.25):
        one = resolve({"target_macs": share}).as_dict()
        write(study / f"{share}", "finetuned", one, share=share, top1=60.0)
    found = lines(drawn(study)["Top-1 against MACs"])
    assert found["l1"] == [[pytest.approx(1 / 0.7), 69.9], [2.5, 66.5]]
    assert found["l1, target"] == [[2.0, 60.0], [4.0, 60.0]]


def test_a_dollar_in_a_name_is_no_formula():
    figure = plots.draw("$x", r"cost $\q$", [])
    assert r"$\q$" in plots.to_svg(figure)


def test_words_stay_inside_the_picture(study):
    for number in range(9):
        one = step(criterion=f"criterion {number}")
        write(study / f"{number}", "finetuned", one, share=0.4, top1=60.0)
    shape = {**SHAPE, "dataset": "folder", "folder": f"/{'a long name ' * 9}"}
    write(study / "folder", "baseline", shape=shape)
    loaded = load([study])
    for figure in (f for name in loaded.cells for f in plots.plots(loaded, name).values()):
        plots.to_svg(figure)
        words = [figure.texts[0], *(figure.legends[0].get_texts() if figure.legends else ())]
        for box in (word.get_window_extent() for word in words):
            assert 0 < box.x0 < box.x1 < figure.bbox.x1
