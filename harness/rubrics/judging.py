"""The part of a run that a judge does: verdicts on answers that are scored already, and pairs against the baseline."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from harness.files import replace_file
from harness.rubrics.answer import extract
from harness.rubrics.ballot import Page
from harness.rubrics.judge import Judge
from harness.rubrics.store import PICTURE, Sample, read_facts, read_judged
from harness.run.store import read_json

_FINAL = ("scored", "unscored")


def judge_samples(
    samples: Sequence[Sample], judge: Judge, protocol: str, workers: int, echo: Callable[[str], None]
) -> int:
    """Judge every scored sample of a task with `judged` rules that has no verdict by `protocol` yet.

    Verdicts go to `judge.json` beside the score; returns how many samples have none because the server failed.
    """
    left = [one for one in samples if _is_open(one, judge, protocol)]
    with ThreadPoolExecutor(workers, "judge") as pool:
        for one, said in zip(left, pool.map(lambda one: _judge(one, judge, protocol), left), strict=True):
            echo(f"judge: {one.level} {one.task.name} #{one.number}: {said}")
    return sum(_is_open(one, judge, protocol) for one in left)


def compare_samples(
    pairs: Sequence[tuple[Sample, Sample]], judge: Judge, protocol: str, workers: int, echo: Callable[[str], None]
) -> int:
    """Ask which of two answers is more pleasing, for each (sample, baseline's sample) whose pages both run.

    Outcomes (`win`, `loss`, `tie`, `unscored`) go to the sample's `pair.json`; returns how many the server failed.
    """
    left = [(one, other) for one, other in pairs if _is_pair_open(one, other, judge, protocol)]

    def prefer(pair: tuple[Sample, Sample]) -> None:
        if not judge.failing:
            _compare(*pair, judge, protocol)

    with ThreadPoolExecutor(workers, "judge") as pool:
        list(pool.map(prefer, left))
    failed = sum(_is_pair_open(one, other, judge, protocol) for one, other in left)
    if left:
        echo(f"judge: {len(left) - failed} of {len(left)} pairs compared")
    return failed


def _is_open(one: Sample, judge: Judge, protocol: str) -> bool:
    if not one.task.file.rubric.judged or read_json(one.paths.score)["status"] != "scored":
        return False
    document = read_judged(one.paths, one.task.file.version)
    return document is None or document["status"] not in _FINAL or document["judge"] != _sign(judge, protocol)


def _judge(one: Sample, judge: Judge, protocol: str) -> str:
    if judge.failing:
        return "not asked: the server fails"
    facts = read_facts(one.paths)
    rules = [rule for rule in one.task.file.rubric.judged if rule.holds(facts)]
    page = _load_page(one)
    verdicts = [judge.decide(page, rule, one.task.name, one.number) for rule in rules]
    outcomes = [verdict.outcome for verdict in verdicts]
    status = next((bad for bad in ("infra", "unscored") if bad in outcomes), "scored")
    points = sum(rule.points for rule, outcome in zip(rules, outcomes, strict=True) if outcome == "yes")
    document = {
        "judge": _sign(judge, protocol),
        "version": one.task.file.version,
        "status": status,
        "points": points if status == "scored" else None,
        "criteria": [asdict(verdict) for verdict in verdicts],
    }
    replace_file(one.paths.judge, json.dumps(document, indent=1).encode() + b"\n")
    said = ", ".join(f"{verdict.criterion} {verdict.outcome}" for verdict in verdicts)
    return said or "nothing to judge"


def _is_pair_open(one: Sample, other: Sample, judge: Judge, protocol: str) -> bool:
    if not all(_is_shown(sample) for sample in (one, other)):
        return False
    if not one.paths.pair.exists():
        return True
    document: dict[str, Any] = read_json(one.paths.pair)
    return bool(document["outcome"] == "infra" or document["judge"] != _sign(judge, protocol))


def _is_shown(one: Sample) -> bool:
    """Whether there is something to look at: the judge would be asked all its questions."""
    rules = one.task.file.rubric.judged
    if not rules or read_json(one.paths.score)["status"] != "scored":
        return False
    facts = read_facts(one.paths)
    return all(rule.holds(facts) for rule in rules)


def _compare(one: Sample, other: Sample, judge: Judge, protocol: str) -> None:
    verdict = judge.prefer(_load_page(one), _load_page(other), one.task.name, one.number)
    document = {
        "judge": _sign(judge, protocol),
        "against": other.level,
        "outcome": {"first": "win", "second": "loss"}.get(verdict.outcome, verdict.outcome),
        "votes": [asdict(vote) for vote in verdict.votes],
    }
    replace_file(one.paths.pair, json.dumps(document, indent=1).encode() + b"\n")


def _load_page(one: Sample) -> Page:
    answer = one.paths.answer.read_text(encoding="utf-8", errors="replace")
    picture = one.paths.root / PICTURE
    source = extract(answer, one.task.file.extraction).code
    return Page(source, picture.read_bytes() if picture.exists() else None)


def _sign(judge: Judge, protocol: str) -> dict[str, Any]:
    return {"model": judge.name, "protocol_sha256": protocol}
