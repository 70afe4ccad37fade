"""Scores of a rubric run, summarised: means with intervals that know how few tasks there are."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from harness.errors import UserError
from harness.report.published import FOLDER
from harness.rubrics.score import sum_points
from harness.rubrics.store import Scored
from harness.rubrics.task import load_tasks

RESAMPLES = 4_999
SEED = 20_231
PUBLISHED = FOLDER / "16x.yaml"


@dataclass(frozen=True)
class TaskMean:
    """One level on one task: `mean` and `best` (expected best of `tries` answers) in points, `hidden` in 0..1.

    `judged` is the mean with a judge's points, over the answers that have a verdict; NaN where no judge was asked in
    this run. `unjudged` counts answers without one. `pairs` counts how answers fared beside the baseline's.
    """

    task: str
    scores: tuple[float, ...]
    mean: float
    best: float
    tries: int
    hidden: float
    infra: int
    judged: float = math.nan
    unjudged: int = 0
    pairs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LevelSummary:
    """One level over its tasks; `low` and `high` bound the mean with 95% confidence."""

    level: str
    tasks: tuple[TaskMean, ...]
    mean: float
    low: float
    high: float
    best: float
    hidden: float
    judged: float = math.nan


@dataclass(frozen=True)
class Published:
    """Scores that others published for the tasks that ours are modelled on."""

    model: str
    source: str
    date: str
    differs: str
    scores: dict[str, float]


def summarise(scored: Sequence[Scored]) -> list[LevelSummary]:
    """One summary per level, in the order of first appearance. Infra errors are counted, never scored."""
    tries = {task.name: task.file.tries for task in load_tasks()}
    levels = list(dict.fromkeys(one.level for one in scored))
    judged = frozenset(one.task for one in scored if one.judged is not None)
    return [_summarise_level(level, [one for one in scored if one.level == level], tries, judged) for level in levels]


def expect_best(scores: Sequence[float], tries: int) -> float:
    """Expected best of `tries` answers drawn without replacement from `scores`; NaN for no scores.

    The order-statistic form of the unbiased pass@k estimator (Chen et al. 2021, arXiv 2107.03374): the i-th smallest
    of n is the best of a draw of k with probability C(i-1, k-1) / C(n, k).
    """
    ordered, n = sorted(scores), len(scores)
    k = min(tries, n)
    if n == 0:
        return math.nan
    return sum(value * math.comb(i, k - 1) for i, value in enumerate(ordered)) / math.comb(n, k)


def bound_mean(groups: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = SEED) -> tuple[float, float]:
    """95% percentile interval of the mean of the groups' means: tasks are drawn anew, then answers within each.

    The tasks are the clusters (Miller 2024, arXiv 2411.00640); with five of them the interval is wide, and rightly so.
    """
    filled = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    if not filled:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    means = [_draw(filled, generator) for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def load_published(path: Path = PUBLISHED) -> list[Published]:
    """Published rows, none without the checkout's `results/published`; `UserError` names what is not right."""
    if not path.is_file():
        return []
    try:
        return [Published(**{**row, "date": str(row["date"])}) for row in yaml.safe_load(path.read_text())]
    except (TypeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a list of model, source, date, differs and scores ({error})") from error


def profile(scored: Sequence[Scored]) -> dict[tuple[str, str, str], dict[str, tuple[int, int]]]:
    """For each (task, kind, check id) and each level: how many answers passed, and how many were checked."""
    counts: dict[tuple[str, str, str], dict[str, tuple[int, int]]] = {}
    for one in scored:
        for check in one.score.checks:
            levels = counts.setdefault((one.task, check.kind, check.id), {})
            passed, seen = levels.get(one.level, (0, 0))
            levels[one.level] = (passed + check.passed, seen + 1)
    return counts


def _draw(groups: Sequence[npt.NDArray[np.float64]], generator: np.random.Generator) -> float:
    chosen = generator.integers(len(groups), size=len(groups))
    return float(np.mean([generator.choice(groups[number], size=len(groups[number])).mean() for number in chosen]))


def _summarise_level(
    level: str, scored: Sequence[Scored], tries: dict[str, int], judged: frozenset[str]
) -> LevelSummary:
    tasks = tuple(
        _summarise_task(name, [one for one in scored if one.task == name], tries.get(name, 1), judged)
        for name in sorted({one.task for one in scored})
    )
    known = [task for task in tasks if task.scores]
    low, high = bound_mean([task.scores for task in known])

    def average(values: Sequence[float]) -> float:
        return float(np.mean(values)) if values else math.nan

    return LevelSummary(
        level,
        tasks,
        average([task.mean for task in known]),
        low,
        high,
        average([task.best for task in known]),
        average([task.hidden for task in known]),
        average([task.judged for task in known]),
    )


def _summarise_task(name: str, scored: Sequence[Scored], tries: int, judged: frozenset[str]) -> TaskMean:
    scores = tuple(one.score.compat for one in scored if one.score.compat is not None)
    hidden = [one.score.hidden for one in scored if one.score.hidden is not None]
    return TaskMean(
        name,
        scores,
        float(np.mean(scores)) if scores else math.nan,
        expect_best(scores, tries),
        tries,
        float(np.mean(hidden)) if hidden else math.nan,
        len(scored) - len(scores),
        *_summarise_judged(scored, judged),
    )


def _summarise_judged(scored: Sequence[Scored], judged: frozenset[str]) -> tuple[float, int, dict[str, int]]:
    """Mean with the judge's points, how many answers have none, and the outcomes of pairs; `judged` names the tasks."""
    known = [one for one in scored if one.score.compat is not None]
    if not judged or not known:
        return math.nan, 0, {}
    if known[0].task not in judged:
        return float(np.mean([one.score.compat for one in known])), 0, {}
    totals = [
        sum_points(one.score.checks, one.judged.points) for one in known if one.judged and one.judged.points is not None
    ]
    pairs = Counter(one.judged.pair for one in known if one.judged and one.judged.pair)
    return float(np.mean(totals)) if totals else math.nan, len(known) - len(totals), dict(sorted(pairs.items()))
