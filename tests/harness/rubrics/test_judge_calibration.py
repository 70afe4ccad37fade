"""Agreement with the labelled set, and what a run makes of it."""

import io
import itertools
import json
import math
import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import yaml
from judge_server import Asked, answer, serve_judge
from rich.console import Console
from statsmodels.stats.inter_rater import cohens_kappa

from harness.errors import EndpointError, UserError
from harness.rubrics import calibration_record, calibration_run
from harness.rubrics.agreement import bound_kappa, compute_kappa
from harness.rubrics.ballot import strip_comments
from harness.rubrics.calibration_record import require_calibration
from harness.rubrics.calibration_run import calibrate
from harness.rubrics.config import RubricsConfig, load_rubrics_config
from harness.rubrics.labelled_set import TASK, load_labelled
from harness.rubrics.task import find_judged, load_tasks

RULES = find_judged(load_tasks((TASK,)))
SET = load_labelled()
LABELS = {strip_comments(item.source).strip(): item.labels for item in SET}


def make_config(tmp_path, url: str, **judge: object) -> RubricsConfig:
    settings = {
        "name": "r", "model": "m", "levels": [{"name": "bf16"}],
        "judge": {"base_url": url, "model": "maker/judge-1", "records": str(tmp_path), "workers": 8, **judge},
    }  # fmt: skip
    return RubricsConfig.model_validate(settings)


def know(asked: Asked) -> str:
    """The answer that the labels give."""
    rule = next(rule for rule in RULES if rule.question == asked.question)
    return "yes" if LABELS[asked.pages[0]][rule.id] else "no"


def contradict(asked: Asked) -> str:
    return "no" if know(asked) == "yes" else "yes"


@pytest.fixture
def few(monkeypatch) -> None:
    """A quarter of the set, where the whole would only take longer."""
    for module in (calibration_run, calibration_record):
        monkeypatch.setattr(module, "load_labelled", lambda: SET[::4])


def run(config: RubricsConfig) -> str:
    out = io.StringIO()
    calibrate(config, Console(file=out, width=200))
    return out.getvalue()


def test_the_set_is_varied_and_near_balance() -> None:
    assert len(SET) >= 60
    assert len(LABELS) == len(SET)
    assert len({item.page for item in SET}) >= 12
    for rule in RULES:
        share = sum(item.labels[rule.id] for item in SET) / len(SET)
        assert 0.35 <= share <= 0.65
    assert {tuple(item.labels.values()) for item in SET} == set(itertools.product((True, False), repeat=2))
    assert sum(item.why.startswith("hard") for item in SET) >= 8


def test_judged_are_only_the_two_criteria_of_taste() -> None:
    assert {task.name for task in load_tasks() if task.file.rubric.judged} == {TASK}
    assert [(rule.id, rule.points) for rule in RULES] == [("pleasing", 0.25), ("poor_colours", -0.5)]


def test_a_judge_that_agrees_may_give_points(tmp_path) -> None:
    with serve_judge(answer(know)) as (url, requests):
        config = make_config(tmp_path, url)
        said = run(config)
        assert len(requests) == len(SET) * len(RULES) * 3
        assert run(config).count("kappa 1.00") == 2
        assert len(requests) == len(SET) * len(RULES) * 3
    assert said.count("agreement 100% of 74, Cohen's kappa 1.00, 95% 1.00 to 1.00: its points count") == 2
    assert re.search(r"yes\s+│\s+32\s+│\s+0\s+│\s+0", said)
    entry = require_calibration(config.judge, RULES)
    assert entry["model"] == "maker/judge-1"
    assert entry["kappas"]["poor_colours"] == {"kappa": 1.0, "low": 1.0, "high": 1.0, "n": 74}
    record = json.loads(next(tmp_path.glob("maker-judge-1-*.json")).read_text())
    assert len(record["answers"]["columns"]["pleasing"]["votes"]) == 3
    other = config.judge.model_copy(update={"images": True})
    with pytest.raises(UserError, match="no finished calibration for these prompts"):
        require_calibration(other, RULES)
    with pytest.raises(UserError, match="no finished calibration for these prompts"):
        require_calibration(config.judge, [RULES[0].model_copy(update={"question": "Is it nice?"}), RULES[1]])


def mix(share: float) -> Callable[[Asked], str]:
    """Right on a share of the pages, the same ones whatever the vote."""
    return lambda asked: (know if random.Random(asked.pages[0]).random() < share else contradict)(asked)


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        (answer(contradict), "kappa -"),
        (answer(mix(0.65)), "points do not count"),
        (answer(lambda asked: "yes"), "kappa 0.00"),
        (lambda asked: "Both sides have a point.", "kappa 0.00"),
    ],
)
@pytest.mark.usefixtures("few")
def test_a_judge_that_does_not_agree_is_refused(tmp_path, rule, verdict) -> None:
    with serve_judge(rule) as (url, _):
        config = make_config(tmp_path, url)
        said = run(config)
    assert verdict in said
    assert "below 0.6: its points do not count" in said
    with pytest.raises(UserError, match=r"agrees too little with the labels on pleasing \(kappa .*, at least 0.6 is"):
        require_calibration(config.judge, RULES)


@pytest.mark.usefixtures("few")
def test_a_calibration_that_a_server_broke_off_counts_for_nothing_and_goes_on(tmp_path) -> None:
    fails = [True]
    with serve_judge(lambda asked: 400 if fails[0] else answer(know)(asked)) as (url, asked):
        config = make_config(tmp_path, url)
        with pytest.raises(EndpointError, match="19 answers were not judged, for failures of the server"):
            run(config)
        assert len(asked) < 19 * 2 * 3
        with pytest.raises(UserError, match="no finished calibration"):
            require_calibration(config.judge, RULES)
        fails[0] = False
        assert run(config).count("its points count") == 2


def test_a_judge_of_the_candidates_family_is_refused(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    judge = {"base_url": "http://127.0.0.1:1/v1", "model": "Qwen/Qwen3-VL-32B"}
    path.write_text(yaml.safe_dump({"name": "r", "model": "a/qwen3-coder", "levels": [{"name": "a"}], "judge": judge}))
    with pytest.raises(UserError, match=r"judge.model: Qwen/Qwen3-VL-32B is of the same family as a/qwen3-coder"):
        load_rubrics_config(path)
    with pytest.raises(UserError, match=r"--set judge.base_url: string should match pattern"):
        load_rubrics_config(path, ["judge.base_url=nowhere"])


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_statsmodels(seed) -> None:
    generator = np.random.default_rng(seed)
    names = ["yes", "no", "unscored"]
    table = generator.integers(0, 20, size=(3, 3))
    pairs = [(names[i], names[j]) for i, j in itertools.product(range(3), repeat=2) for _ in range(table[i, j])]
    assert math.isclose(compute_kappa(pairs), cohens_kappa(table, return_results=True).kappa)
    assert math.isnan(compute_kappa([("yes", "yes")] * 4))


def test_the_interval_is_that_of_all_ways_to_draw_the_clusters() -> None:
    clusters = [
        [("yes", "yes"), ("no", "no"), ("yes", "no")],
        [("no", "yes"), ("no", "no")],
        [("yes", "yes"), ("yes", "yes"), ("no", "no"), ("no", "yes")],
        [("yes", "no"), ("no", "no")],
    ]
    every = [compute_kappa([pair for one in drawn for pair in one]) for drawn in itertools.product(clusters, repeat=4)]
    low, high = np.quantile(every, [0.025, 0.975])
    assert bound_kappa(clusters, resamples=20_000) == pytest.approx((low, high), abs=0.03)


def test_the_interval_of_single_answers_is_near_the_asymptotic_one() -> None:
    table = np.array([[40, 10], [15, 35]])
    names = ["yes", "no"]
    pairs = [(names[i], names[j]) for i, j in itertools.product(range(2), repeat=2) for _ in range(table[i, j])]
    known = cohens_kappa(table, return_results=True)
    assert bound_kappa([[pair] for pair in pairs]) == pytest.approx((known.kappa_low, known.kappa_upp), abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edits": [["no such text", ""]]}, "a: page.html has no 'no such text', which an edit replaces"),
        ({"page": "other"}, "a: no page "),
        ({"labels": {"pleasing": "maybe"}}, "not a labelled set"),
    ],
)
def test_a_broken_set_is_one_line(tmp_path, change, message) -> None:
    entry = {"id": "a", "page": "page", "labels": {"pleasing": True}, "why": "w", **change}
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "page.html").write_text("<p>x</p>")
    (tmp_path / "set.yaml").write_text(yaml.safe_dump([entry]))
    with pytest.raises(UserError, match=message):
        load_labelled(tmp_path)
