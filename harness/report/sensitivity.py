"""Does a comparison hang on a choice? The same difference with other tasks counted, and in groups of instances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from harness.report.arms import Arm
from harness.report.figures import Interval, Vector
from harness.report.reliability import Flips, Shift, count_flips, shift

_EVERYTHING = Interval(-1.0, 1.0)


@dataclass(frozen=True)
class Subset:
    """`other - base` over part of the tasks; scores, difference and 95% t interval are fractions, n instances."""

    name: str
    n: int
    base: float
    other: float
    interval: Interval

    @property
    def difference(self) -> float:
        """Difference of the two scores."""
        return self.other - self.base


@dataclass(frozen=True)
class Details:
    """What stands behind one comparison. `fixed` bounds the difference on just these instances, where both levels were
    repeated (only luck varies): None where they were not."""

    flips: Flips
    steps: Shift
    tokens: Shift
    fixed: Interval | None
    choices: list[Subset]
    difficulties: list[Subset]
    repositories: list[Subset]


def find_details(base: Arm, other: Arm, instances: Sequence[str]) -> Details:
    """Everything of `Details` for two arms over the `instances` that both answered."""
    ours, theirs = base.sample(instances), other.sample(instances)
    steps, tokens = (
        shift(_cost(base.answers, column, instances), _cost(other.answers, column, instances))
        for column in ("steps", "tokens")
    )
    groups = base.answers.drop_duplicates("instance_id").set_index("instance_id")
    return Details(
        flips=count_flips(ours, theirs),
        steps=steps,
        tokens=tokens,
        fixed=bound_fixed(ours.means, ours.repeats, theirs.means, theirs.repeats),
        choices=_choose(base, other),
        difficulties=_split(base, other, instances, groups["difficulty"]),
        repositories=_split(base, other, instances, groups["repo"]),
    )


def bound_fixed(base: Vector, base_repeats: Vector, other: Vector, other_repeats: Vector) -> Interval | None:
    """95% interval of the mean difference on these instances alone: float64 [n] solved shares and repeats.

    Variance is sum p(1-p)/(K-1) over n^2, unbiased for each arm; None unless every instance has repeats in both.
    """
    if min(base_repeats.min(), other_repeats.min()) < 2:
        return None
    variance = base * (1 - base) / (base_repeats - 1) + other * (1 - other) / (other_repeats - 1)
    half = float(stats.norm.isf(0.025)) * math.sqrt(float(variance.sum())) / len(base)
    value = float(np.mean(other - base))
    return Interval(max(-1.0, value - half), min(1.0, value + half))


def bound_clustered(differences: Vector, clusters: Sequence[str]) -> Interval:
    """95% interval of the mean of float64 [n] that lets instances of one cluster move together: CR1 sandwich variance
    with G/(G-1), Student's t with G-1 degrees of freedom (Cameron & Miller 2015, sections II.B and VI.D)."""
    codes, names = pd.factorize(pd.Series(clusters))
    count = len(names)
    if count < 2:
        return _EVERYTHING
    value = float(differences.mean())
    sums = np.bincount(codes, weights=differences - value)
    error = math.sqrt(count / (count - 1) * float(np.sum(sums**2))) / len(differences)
    half = float(stats.t.isf(0.025, count - 1)) * error
    return Interval(max(-1.0, value - half), min(1.0, value + half))


def _choose(base: Arm, other: Arm) -> list[Subset]:
    """The comparison as reported, and with other tasks counted."""
    reported = _subset("as reported: machine errors excluded", base.answers, other.answers)
    found = [
        reported,
        _subset("machine errors count as unsolved", base.tasks, other.tasks),
        _subset("only work that the agent handed in itself", _submitted(base.answers), _submitted(other.answers)),
    ]
    if base.tasks["suspect"].any() or other.tasks["suspect"].any():
        sound = _subset("without suspect tasks", *(_sound(arm.answers) for arm in (base, other)))
        found.append(sound)
    left, right = _pair(base.answers, other.answers)
    if len(left):
        repos = base.answers.drop_duplicates("instance_id").set_index("instance_id")["repo"].loc[left.index]
        interval = bound_clustered(np.asarray(right - left, dtype=np.float64), list(repos))
        found.append(
            Subset("instances of one repository move together", reported.n, reported.base, reported.other, interval)
        )
    return [subset for subset in found if subset.n]


def _split(base: Arm, other: Arm, instances: Sequence[str], groups: "pd.Series[str]") -> list[Subset]:
    frames = [arm.answers[arm.answers["instance_id"].isin(instances)] for arm in (base, other)]
    return [
        _subset(str(name), *(frame[frame["instance_id"].isin(members.index)] for frame in frames))
        for name, members in sorted(groups.loc[list(instances)].groupby(groups), key=lambda item: -len(item[1]))
    ]


def _subset(name: str, base: pd.DataFrame, other: pd.DataFrame) -> Subset:
    left, right = _pair(base, other)
    differences = (right - left).to_numpy(np.float64)
    if len(differences) < 2 or np.ptp(differences) == 0:
        interval = _EVERYTHING
    else:
        found = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
        interval = Interval(max(-1.0, float(found.low)), min(1.0, float(found.high)))
    return Subset(name, len(left), float(left.mean()), float(right.mean()), interval)


def _pair(base: pd.DataFrame, other: pd.DataFrame) -> "tuple[pd.Series[float], pd.Series[float]]":
    """Solved shares of the instances that both have, in one order."""
    left, right = (frame.groupby("instance_id")["resolved"].mean() for frame in (base, other))
    common = left.index.intersection(right.index)
    return left.loc[common], right.loc[common]


def _cost(answers: pd.DataFrame, column: str, instances: Sequence[str]) -> Vector:
    values = answers["prompt_tokens"] + answers["completion_tokens"] if column == "tokens" else answers[column]
    return values.groupby(answers["instance_id"]).mean().loc[list(instances)].to_numpy(np.float64)


def _submitted(answers: pd.DataFrame) -> pd.DataFrame:
    return answers[answers["submitted"]]


def _sound(answers: pd.DataFrame) -> pd.DataFrame:
    return answers[~answers["suspect"].astype(bool)]
