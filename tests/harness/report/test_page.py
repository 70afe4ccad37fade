"""The report page: what it holds, in what order, and that nothing in it is taken for markup."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import pytest
from page_plants import PLANT, plant_everywhere

from harness.errors import UserError
from harness.report.arms import load_run
from harness.report.page import write_report
from harness.report.published import load_rubrics, load_scores
from harness.report.study import examine, state_finding
from harness.run.outcome import Outcome


class Page(HTMLParser):
    """Tags, attributes, text and scripts of a page, as a browser would take them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.scripts = [], [], [], {}
        self._script = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self._script = dict(attrs).get("id", "page")
            self.scripts[self._script] = ""

    def handle_endtag(self, tag):
        self._script = None if tag == "script" else self._script

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] += data
        else:
            self.text.append(data)

    @property
    def index(self):
        return json.loads(self.scripts["index"])

    def chunk(self, number):
        return json.loads(zlib.decompress(base64.b64decode(self.scripts[f"chunk-{number}"])))


def test_everything_that_a_model_wrote_is_escaped(fake_store):
    root = fake_store(levels=["bf16", "int4"], instances=3)
    plant_everywhere(root)
    page = Page(write_report([root]).read_text())
    assert set(page.scripts) == {"index", "page", "chunk-0", "chunk-1"}
    assert not {"iframe", "object", "link", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith(("data:", "#")) for name, value in page.attributes if name in ("src", "href"))
    assert "".join(page.text).count(PLANT) >= 4
    assert re.search(r"\b49\b", "".join(page.text)) is None
    assert page.index["instances"][0]["repo"].startswith(PLANT)
    chunk = page.chunk(0)
    assert chunk["steps"][0]["messages"][0]["calls"][0] == {"name": PLANT, "arguments": PLANT}
    assert (chunk["failed"], chunk["steps"][0]["cached"]) == ([PLANT], 40)


def test_page_holds_verdict_tables_and_tasks(fake_store):
    root = fake_store(instances=30, true_rates={"int4": 0.1}, repeats=2)
    page = Page(write_report([root]).read_text())
    text = "".join(page.text)
    finding = state_finding(examine(load_run(root)))
    assert text.index(finding) < text.index("Scores") < text.index("Comparison") < text.index("Published figures")
    assert "Simulated data" in text
    assert "pass@2" in text
    assert "SIMULATED" in text
    assert "nan" not in text.lower()
    assert page.tags.count("img") == 6
    index = page.index
    assert (index["arms"], index["baseline"], len(index["instances"])) == (["bf16", "int8", "int4"], 0, 30)
    assert [len(tasks) for tasks in index["instances"][0]["arms"]] == [2, 2, 2]


def test_trajectories_beyond_the_budget_are_counted(fake_store):
    root = fake_store(levels=["bf16", "int4"], instances=3)
    plant_everywhere(root)
    text = "".join(Page(write_report([root], chunk_budget=10).read_text()).text)
    assert "2 trajectories are left out" in text


def test_runs_that_cannot_be_compared_say_why_unless_allowed(fake_store):
    one = fake_store(levels=["bf16"], instances=3, run_id="one")
    two = fake_store(levels=["int4"], instances=3, run_id="two", change={"config.agent.step_limit": 9})
    three = fake_store(levels=["int4"], instances=3, run_id="three")
    difference = "budgets: config.agent.step_limit is 250 in one and 9 in two"
    assert difference in "".join(Page(write_report([one, two]).read_text()).text)
    allowed = "".join(Page(write_report([one, two], allow=["budgets"]).read_text()).text)
    assert "Compared in spite of a difference in budgets (--allow budgets)" in allowed
    compared = "".join(Page(write_report([one, three]).read_text()).text)
    assert "Baseline: one:bf16" in compared


def test_a_run_without_answers_still_has_a_page(fake_store):
    outcomes = {("bf16", index, 0): Outcome.INFRA_ERROR for index in range(2)}
    root = fake_store(levels=["bf16"], instances=2, outcomes=outcomes)
    assert "No task has ended in an answer yet" in "".join(Page(write_report([root]).read_text()).text)


def test_levels_without_a_common_instance_still_have_a_page(fake_store):
    outcomes = {("bf16", 0, 0): Outcome.INFRA_ERROR, ("int4", 1, 0): Outcome.INFRA_ERROR}
    outcomes |= {("bf16", 1, 0): Outcome.RESOLVED, ("int4", 0, 0): Outcome.RESOLVED}
    root = fake_store(levels=["bf16", "int4"], instances=2, outcomes=outcomes)
    assert "No two levels have answered the same instance" in "".join(Page(write_report([root]).read_text()).text)


def test_published_figures_have_source_and_date():
    found = {(one.model, one.scaffold): one.score for one in load_scores()}
    assert found[("Qwen3-Coder-Next", "SWE-agent")] == 70.6
    assert all(one.source and one.date for one in load_scores())
    (rubrics,) = load_rubrics()
    assert sum(rubrics.scores.values()) / len(rubrics.scores) == pytest.approx(6.8)


def test_a_published_entry_without_a_source_is_refused(tmp_path):
    path = tmp_path / "figures.yaml"
    path.write_text("- {model: someone, score: 50.0}\n")
    with pytest.raises(UserError, match=r"figures.yaml: .*expected the keys model, score, .*source, date"):
        load_scores(path)
