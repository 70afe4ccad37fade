"""One run as the report sees it: arms, scores and comparisons, found once and shown in many places."""

from dataclasses import dataclass

import pandas as pd

from harness.report.arms import Arm, Run, list_arms
from harness.report.compare import Comparison, compare_arms, find_baseline, format_points
from harness.report.tables import format_share, score_rows

DEFAULT_MARGIN = 0.02
WORDS = ("worse", "better", "equivalent", "inconclusive")


@dataclass(frozen=True)
class Study:
    """`arms` have at least one answer; `comparisons` are theirs against the baseline, none where there is one arm."""

    run: Run
    arms: list[Arm]
    scores: pd.DataFrame
    comparisons: list[Comparison]
    margin: float

    @property
    def baseline(self) -> Arm | None:
        """The arm that the others are compared with; None where nothing is answered."""
        return find_baseline(self.arms) if self.arms else None


def examine(run: Run, margin: float = DEFAULT_MARGIN) -> Study:
    """Everything that one run says; `margin` of equivalence as a fraction."""
    arms = [arm for arm in list_arms(run) if len(arm.answers)]
    comparable = _find_comparable(arms)
    comparisons = compare_arms(comparable, comparable[0], margin) if len(comparable) > 1 else []
    return Study(run, arms, score_rows(run), comparisons, margin)


def _find_comparable(arms: list[Arm]) -> list[Arm]:
    """The baseline, then the arms that answered an instance that it answered too."""
    if not arms:
        return []
    baseline = find_baseline(arms)
    known = set(baseline.answers["instance_id"])
    return [baseline, *(arm for arm in arms if arm is not baseline and known & set(arm.answers["instance_id"]))]


def state_finding(study: Study) -> str:
    """One sentence that says what the run found, for the plot's title and the top of the page."""
    scores, run = study.scores, study.run
    if not study.arms:
        return "No task has ended in an answer yet."
    dataset, instances = run.record["dataset"]["name"], int(scores["instances"].max())
    if not scores["resolved"].any():
        highest = format_share(scores.loc[scores["answers"] > 0, "high"].max())
        return (
            f"No level solved any of {instances} instances of {dataset}: true rates up to {highest}% "
            "remain possible, and the levels cannot be told apart."
        )
    if len(study.arms) == 1:
        share = format_share(scores["score"].max())
        return f"{study.arms[0].level} solves {share}% of {instances} instances of {dataset}."
    if not study.comparisons:
        return "No two levels have answered the same instance yet."
    groups = [[one for one in study.comparisons if one.verdict.word == word] for word in WORDS]
    base = study.comparisons[0].baseline.level
    return f"Against {base}: {'; '.join(_state_group(group) for group in groups if group)}."


def _state_group(group: list[Comparison]) -> str:
    names = [f"{one.other.level} ({format_points(one.paired.difference)} points)" for one in group]
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    word = group[0].verdict.word
    margin = f" within ±{100 * group[0].paired.margin:g} points" if word == "equivalent" else ""
    return f"{text} {word}{margin}"
