"""Plots and the report page."""

import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.report.arms import load_run
from harness.report.page import write_report
from harness.report.plots import draw_levels, plot_style, state_finding, write_plots
from harness.run.outcome import Outcome
from harness.run.paths import RunPaths

PLANT = "\"'><script>alert(1)<img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;"


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would take them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def plant_everywhere(root):
    """Put markup into every string that a model, a dataset or a server can choose."""
    paths = RunPaths(root)
    table = pq.read_table(paths.results).to_pandas()
    for column in ("instance_id", "repo", "difficulty", "limit", "infra_reason"):
        table[column] = PLANT + table[column]
    pq.write_table(pa.Table.from_pandas(table), paths.results)
    record = json.loads(paths.record.read_text())
    record["run_id"] = record["config"]["model"] = record["dataset"]["name"] = record["harness_version"] = PLANT
    record["started"] = record["ended"] = PLANT
    paths.record.write_text(json.dumps(record))
    task = paths.level("bf16").task(table["instance_id"][0], 0)
    task.root.mkdir(parents=True)
    task.patch.write_bytes(PLANT.encode() + b"\xff")
    call = {"id": PLANT, "type": "function", "function": {"name": PLANT, "arguments": PLANT}}
    messages = [
        {"role": PLANT, "content": PLANT},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": PLANT + "\udce9"}]},
    ]
    content = {"format": "sweq-trajectory", "version": 1, "info": {}, "messages": messages, "steps": [], "ending": None}
    task.trajectory.write_text(json.dumps(content))


def test_everything_that_a_model_wrote_is_escaped(fake_store):
    root = fake_store(levels=["bf16", "int4"], instances=3)
    plant_everywhere(root)
    page = Page(write_report([root]).read_text())
    assert not {"script", "iframe", "object", "link", "base"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for name, value in page.attributes if name in ("src", "href"))
    text = "".join(page.text)
    assert text.count(PLANT) >= 12
    assert re.search(r"\b49\b", text) is None


def test_page_holds_verdict_tables_and_tasks(fake_store):
    root = fake_store(instances=30, true_rates={"int4": 0.1})
    page = Page(write_report([root]).read_text())
    text = "".join(page.text)
    assert state_finding(load_run(root)) in text
    assert text.index("worse") < text.index("perplexity")
    assert "Simulated data" in text
    assert page.tags.count("tr") == 1 + 3 + 1 + 2 + 1 + 2 * 90
    assert "nan" not in text.lower()


def test_trajectories_beyond_the_budget_are_counted(fake_store):
    root = fake_store(levels=["bf16", "int4"], instances=3)
    plant_everywhere(root)
    text = "".join(Page(write_report([root], text_budget=10).read_text()).text)
    assert "1 trajectories are left out" in text


def test_runs_that_cannot_be_compared_say_why(fake_store):
    one = fake_store(levels=["bf16"], instances=3, run_id="one")
    two = fake_store(levels=["int4"], instances=3, run_id="two", change={"config.agent.step_limit": 9})
    three = fake_store(levels=["int4"], instances=3, run_id="three")
    refused = "".join(Page(write_report([one, two]).read_text()).text)
    assert "budgets: config.agent.step_limit is 250 in one and 9 in two" in refused
    compared = "".join(Page(write_report([one, three]).read_text()).text)
    assert "Baseline: one:bf16" in compared


@pytest.mark.parametrize(("rate", "instances"), [(0, 12), (0.5, 12), (1, 1)])
def test_plots_are_drawn_at_every_rate(fake_store, rate, instances):
    root = fake_store(instances=instances, true_rates=dict.fromkeys(["bf16", "int8", "int4"], rate))
    png, svg = write_plots(root)
    assert (png.name, svg.name) == ("levels.png", "levels.svg")
    assert Image.open(png).size == (1920, 920)
    assert svg.read_text().startswith("<?xml")
    again = [path.read_bytes() for path in (png, svg)]
    assert again == [path.read_bytes() for path in write_plots(root)]


def test_all_zero_shows_the_upper_bound(fake_store):
    run = load_run(fake_store(instances=12, true_rates=dict.fromkeys(["bf16", "int8", "int4"], 0)))
    assert "No level solved any of 12" in state_finding(run)
    assert "24.2%" in state_finding(run)
    panel = draw_levels(run).axes[0]
    assert [text.get_text() for text in panel.texts].count("≤ 24%") == 3
    assert panel.get_ylim()[1] > 24


def test_figures_that_nobody_measured_are_no_panel(fake_store):
    run = load_run(fake_store(instances=5, change={"levels": {}}))
    figure = draw_levels(run)
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xlabel() == "level (weights in memory unknown)"


def test_labels_stay_on_the_figure_and_apart(fake_store):
    rates = {"bf16": 0.7, "fp8": 0.7, "int8": 0.69, "int4": 0.62}
    run = load_run(fake_store(levels=list(rates), instances=500, true_rates=rates))
    with plot_style():
        figure = draw_levels(run)
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]
    title = figure._suptitle.get_window_extent(renderer)
    assert title.x1 <= figure.bbox.x1
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_run_without_answers_still_has_a_page(fake_store):
    outcomes = {("bf16", index, 0): Outcome.INFRA_ERROR for index in range(2)}
    root = fake_store(levels=["bf16"], instances=2, outcomes=outcomes)
    assert "No task has ended in an answer yet" in "".join(Page(write_report([root]).read_text()).text)
