"""Plots: drawn at every rate, labels apart, and only of what was measured."""

import json

import numpy as np
import pytest
from PIL import Image

from harness.report.arms import load_run
from harness.report.charts import draw_differences, draw_effort, draw_outcomes, draw_rubrics
from harness.report.plots import CHARTS, draw_levels, plot_style, write_plots
from harness.report.study import examine, state_finding

LEVELS = ["bf16", "int8", "int4"]


@pytest.mark.parametrize(("rate", "instances"), [(0, 12), (0.5, 12), (1, 1)])
def test_plots_are_drawn_at_every_rate(fake_store, rate, instances):
    root = fake_store(instances=instances, true_rates=dict.fromkeys(LEVELS, rate))
    written = write_plots(root)
    expected = ["levels", "differences", "outcomes", *(["effort"] if rate else []), "repositories", "divergence"]
    assert [path.stem for path in written[::2]] == [path.stem for path in written[1::2]] == expected
    assert Image.open(written[0]).size == (1920, 920)
    assert written[1].read_text().startswith("<?xml")


def test_equal_data_give_equal_plots(fake_store):
    root = fake_store(instances=3, change={"levels": {}})
    first = [path.read_bytes() for path in write_plots(root)]
    assert first == [path.read_bytes() for path in write_plots(root)]


def test_all_zero_shows_the_upper_bound(fake_store):
    study = examine(load_run(fake_store(instances=12, true_rates=dict.fromkeys(LEVELS, 0))))
    assert "No level solved any of 12" in state_finding(study)
    assert "24.2%" in state_finding(study)
    panel = draw_levels(study).axes[0]
    assert [text.get_text() for text in panel.texts].count("≤ 24%") == 3
    assert panel.get_ylim()[1] > 24


def test_figures_that_nobody_measured_are_no_panel(fake_store):
    study = examine(load_run(fake_store(instances=5, change={"levels": {}})))
    figure = draw_levels(study)
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xlabel() == "level (weights in memory unknown)"
    assert CHARTS["divergence"](study) is None
    assert draw_rubrics(study) is None


def test_labels_stay_on_the_figure_and_apart(fake_store):
    rates = {"bf16": 0.7, "fp8": 0.7, "int8": 0.69, "int4": 0.62}
    study = examine(load_run(fake_store(levels=list(rates), instances=500, true_rates=rates)))
    for draw in CHARTS.values():
        with plot_style():
            figure = draw(study)
            if figure is None:
                continue
            figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
        assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]
        title = figure._suptitle.get_window_extent(renderer)
        assert title.x1 <= figure.bbox.x1
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert figure._suptitle.get_text().startswith("SIMULATED DATA.")


def test_the_forest_shows_the_intervals_and_the_curve_ends_at_the_score(fake_store):
    study = examine(load_run(fake_store(instances=40, true_rates={"int4": 0.2})))
    lines = draw_differences(study).axes[0].containers
    assert [bar.lines[0].get_xdata()[0] for bar in lines] == pytest.approx(
        [100 * one.paired.difference for one in study.comparisons]
    )
    curves = draw_effort(study).axes[0].lines
    assert [curve.get_ydata()[-1] for curve in curves] == pytest.approx(list(100 * study.scores["score"]))


def test_outcome_bars_are_whole(fake_store):
    study = examine(load_run(fake_store(instances=40)))
    bars = draw_outcomes(study).axes[0].patches
    ends = {}
    for bar in bars:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert list(ends.values()) == pytest.approx([100, 100, 100])


def test_rubric_panels_show_every_answer(fake_store):
    root = fake_store(instances=3)
    for level, score in (("bf16", 9.0), ("int4", 6.5)):
        path = root / "levels" / level / "rubrics" / "clean-markdown" / "0" / "score.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"task": "clean-markdown", "compat": score}))
    figure = draw_rubrics(examine(load_run(root)))
    (panel,) = figure.axes
    dots = [line.get_ydata() for line in panel.lines if line.get_marker() == "o"]
    assert np.concatenate(dots).tolist() == [9.0, 6.5]
    assert [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == ":"] == [9.25]
