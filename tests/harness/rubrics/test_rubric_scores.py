"""From facts to points, from answers to code, from scores to means: nothing here runs a check."""

import math
import statistics
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.rubrics.answer import Extraction, extract
from harness.rubrics.score import Fact, Rubric, compute_score
from harness.rubrics.store import Judged, Scored
from harness.rubrics.summary import bound_mean, expect_best, load_published, profile, summarise
from harness.rubrics.task import load_tasks

RUBRIC = Rubric.model_validate(
    {
        "gates": [{"id": "good", "points": 9, "when": ["works", "size <= 10"]}, {"id": "bad", "points": 1}],
        "modifiers": [
            {"id": "bonus", "points": 2, "when": ["works"]},
            {"id": "malus", "points": -2, "when": ["not works"]},
        ],
        "hidden": [{"id": "odd", "when": "odd"}, {"id": "even", "when": "even"}],
    }
)
TYPESCRIPT = Extraction(languages=("ts", "typescript"), file="a.ts")


def facts(**values: bool | float) -> dict[str, Fact]:
    return {name: Fact(value, f"saw {name}") for name, value in values.items()}


@pytest.mark.parametrize(
    ("known", "compat", "hidden"),
    [
        (facts(works=True, size=10, odd=True, even=False), 10.0, 0.5),
        (facts(works=True, size=11, odd=True, even=True), 3.0, 0.0),
        (facts(works=False, size=1, odd=True, even=True), 0.0, 0.0),
    ],
)
def test_first_gate_that_holds_gives_the_base_and_the_sum_is_clipped(known, compat, hidden) -> None:
    score = compute_score(RUBRIC, known)
    assert (score.compat, score.hidden) == (compat, hidden)
    assert all(check.evidence for check in score.checks)


@given(st.lists(st.integers(0, 40).map(lambda quarters: quarters / 4), min_size=2, max_size=8))
def test_expected_best_of_two_is_the_mean_over_all_pairs(scores) -> None:
    pairs = [max(pair) for pair in combinations(scores, 2)]
    assert math.isclose(expect_best(scores, 2), statistics.fmean(pairs))
    assert math.isclose(expect_best(scores, 1), statistics.fmean(scores))


def test_interval_of_the_mean_knows_that_tasks_are_few() -> None:
    same = [[5.0] * 10] * 5
    assert bound_mean(same, resamples=200) == (5.0, 5.0)
    low, high = bound_mean([[task] * 10 for task in (1.0, 3.0, 5.0, 7.0, 9.0)], resamples=2000)
    assert low < 3.0
    assert high > 7.0


@pytest.mark.parametrize(
    ("answer", "code", "format_ok"),
    [
        ("Sure:\n```ts\nfirst\n```\nand\n```typescript\nsecond\n```\n", "second\n", True),
        ("```js\nother\n```", "other\n", False),
        ("no block at all", "no block at all", False),
        ("~~~ts\r\ntilde\r\n~~~", "tilde\n", True),
        ("````ts\na ``` inside\n```\nstill\n````", "a ``` inside\n```\nstill\n", True),
    ],
)
def test_extraction(answer, code, format_ok) -> None:
    found = extract(answer, TYPESCRIPT)
    assert found.code == code
    assert found.facts["format_ok"].value is format_ok


def test_a_diff_is_told_from_code() -> None:
    diff = "```ts\n@@ -1,2 +1,2 @@\n-old\n+new\n```"
    assert extract(diff, TYPESCRIPT).facts["diff_format"].value is True
    assert extract("```ts\nconst a = -1;\nreturn a + 1;\n```", TYPESCRIPT).facts["diff_format"].value is False


def test_comments_do_not_hide_a_diff() -> None:
    remarks = "// a remark\n# another\n/* a third\n * goes on\n */\n" * 3
    diff = "```ts\n-old\n+new\n+newer\n```"
    assert extract(diff, TYPESCRIPT).facts["diff_format"].value is True
    assert extract(diff.replace("```ts\n", f"```ts\n{remarks}"), TYPESCRIPT).facts["diff_format"].value is True


def test_the_profile_counts_each_check_at_each_level() -> None:
    good = compute_score(RUBRIC, facts(works=True, size=1, odd=True, even=False))
    bad = compute_score(RUBRIC, facts(works=False, size=1, odd=True, even=True))
    scored = [Scored(level, "t", 1, "0", score) for level, score in (("a", good), ("a", bad), ("b", good))]
    counts = profile(scored)
    assert counts["t", "gate", "good"] == {"a": (1, 2), "b": (1, 1)}
    assert counts["t", "gate", "bad"] == {"a": (1, 1)}
    assert counts["t", "hidden", "odd"] == {"a": (1, 2), "b": (1, 1)}


def judged(points: float | None, pair: str | None = None) -> Judged:
    return Judged("unscored" if points is None else "scored", points, {}, pair)


def test_a_judge_is_counted_beside_the_score_and_its_silence_lowers_nothing() -> None:
    score = compute_score(RUBRIC, facts(works=True, size=10, odd=True, even=False))
    low = compute_score(RUBRIC, facts(works=True, size=11, odd=True, even=True))
    scored = [
        Scored("a", "t", 1, "0", score, judged=judged(-0.5, "win")),
        Scored("a", "t", 1, "1", low, judged=judged(None, "tie")),
        Scored("a", "t", 1, "2", low, judged=judged(0.25, "win")),
        Scored("a", "u", 1, "0", low),
    ]
    level = summarise(scored)[0]
    by_task = {task.task: task for task in level.tasks}
    assert by_task["t"].mean == pytest.approx((10 + 3 + 3) / 3)
    assert by_task["t"].judged == pytest.approx((10 + 3.25) / 2)
    assert by_task["t"].unjudged == 1
    assert by_task["t"].pairs == {"tie": 1, "win": 2}
    assert by_task["u"].judged == 3.0
    assert level.judged == pytest.approx((6.625 + 3) / 2)
    assert math.isnan(summarise(scored[3:])[0].judged)


def test_five_tasks_with_prompts_that_tell_nothing_of_the_hidden_checks() -> None:
    tasks = load_tasks()
    assert len(tasks) == 5
    for task in tasks:
        prompt = task.prompt()
        assert all(rule.says not in prompt for rule in task.file.rubric.hidden)
        assert {"oracle.md", "null.md"} <= {path.name for path in (task.folder / "answers").iterdir()}
        assert {name for row in load_published() for name in row.scores} >= {task.name}


def test_an_unknown_task_and_a_broken_rubric_are_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no rubric task 'haiku'; there are benchmark-viz, "):
        load_tasks(("haiku",))
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "task.yaml").write_text(
        "{title: t, difficulty: d, version: 1, prompt: p, extraction: {languages: [ts], file: a}, facts: [works],"
        " rubric: {gates: [{id: a, points: 9, when: [wroks]}, {id: b, points: 1}], hidden: [{id: c, when: works}]}}"
    )
    with pytest.raises(UserError, match=r"task.yaml: rubric: asks for wroks, which `facts` does not list"):
        load_tasks(root=tmp_path)
