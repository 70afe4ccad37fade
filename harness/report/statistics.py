"""The statistics behind every figure: intervals, paired tests, equivalence, and a verdict in words.

Shares and differences are fractions (0.02 is two percentage points). Instances are the unit of analysis: repeats of one
instance are averaged first and never pooled as if they were independent. All intervals speak of new instances like
those of the dataset, not only of new repeats on the same ones. Distribution functions are scipy's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from harness.report.figures import Estimate, Interval, Sample, Vector
from harness.report.resampling import bootstrap_mean, sign_flip

POWER = 0.8


class McNemar(NamedTuple):
    """Exact McNemar test: `lost` pairs only the first arm has, `won` only the second; two-sided p and mid-p."""

    lost: int
    won: int
    p: float
    mid_p: float


@dataclass(frozen=True)
class Paired:
    """`other - base` over n common instances. `p` is raw, `p_tost` the larger of both one-sided p values at `margin`.

    `mcnemar` only for single repeats. `detectable` is the smallest true difference found with 80% power at this n and
    noise. `repeats_needed` is what would settle `margin`, None where only more instances would, then
    `instances_needed` says how many.
    """

    n: int
    difference: float
    standard_error: float
    t_interval: Interval
    bootstrap: Interval
    p: float
    test: str
    mcnemar: McNemar | None
    margin: float
    p_tost: float
    detectable: float
    repeats_needed: int | None
    instances_needed: int


@dataclass(frozen=True)
class Verdict:
    """`word` is better, worse, equivalent or inconclusive; `text` the whole phrase."""

    word: str
    text: str


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a binomial share (Wilson 1927); the whole unit interval when nothing was tried."""
    if n == 0:
        return Interval(0.0, 1.0)
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # scipy leaves a rounding error beside 0 and 1, where the formula gives exactly these.
    return Interval(0.0 if successes == 0 else float(found.low), 1.0 if successes == n else float(found.high))


def estimate_score(arm: Sample, confidence: float = 0.95) -> Estimate:
    """Mean over instances of their share of solved repeats.

    Wilson for one repeat, BCa bootstrap over instances for more, whose repeats travel with them; where all instances
    agree the bootstrap knows no spread, and Wilson over instances, which is wider, stands in.
    """
    n = len(arm.means)
    value = float(arm.means.mean()) if n else 0.0
    if arm.is_single or np.ptp(arm.means) == 0:
        return Estimate(value, wilson(round(value * n), n, confidence), "Wilson")
    return Estimate(value, bootstrap_mean(arm.means, confidence), "BCa bootstrap over instances, repeats nested")


def mcnemar(lost: int, won: int) -> McNemar:
    """Exact conditional test on the discordant pairs and its mid-p (Fagerland, Lydersen & Laake 2013)."""
    total = lost + won
    if total == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = float(stats.binomtest(lost, total).pvalue)
    ties = float(stats.binom.pmf(lost, total, 0.5)) * (1 if lost == won else 2)
    return McNemar(lost, won, exact, exact - ties / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def detectable_difference(standard_error: float, alpha: float = 0.05, power: float = POWER) -> float:
    """Smallest true difference that a two-sided test at `alpha` finds with `power` (normal approximation)."""
    return standard_error * float(stats.norm.isf(alpha / 2) + stats.norm.ppf(power))


def compare_paired(base: Sample, other: Sample, margin: float, confidence: float = 0.95) -> Paired:
    """Everything said of `other` against `base` on the same n >= 1 instances, in the same order."""
    differences = other.means - base.means
    n = len(differences)
    single = base.is_single and other.is_single
    table = mcnemar(int(np.sum(differences < 0)), int(np.sum(differences > 0))) if single else None
    uniform = n == 1 or np.ptp(differences) < 1e-12
    spread = _bound_spread(n) if uniform else float(differences.std(ddof=1))
    error = spread / math.sqrt(n)
    interval = _uniform_interval(differences, confidence) if uniform else _t_interval(differences, confidence)
    repeats = float(np.mean(np.concatenate([base.repeats, other.repeats])))
    needed_error = _settling_error(margin)
    return Paired(
        n=n,
        difference=float(differences.mean()),
        standard_error=0.0 if uniform else error,
        t_interval=interval,
        bootstrap=interval if uniform else bootstrap_mean(differences, confidence),
        p=table.p if table else sign_flip(differences),
        test="exact McNemar" if table else "sign-flip permutation",
        mcnemar=table,
        margin=margin,
        p_tost=_uniform_tost(differences, margin) if uniform else _tost(differences, margin),
        detectable=min(1.0, detectable_difference(error)),
        repeats_needed=None if uniform else _repeats_needed(base, other, spread, repeats, needed_error),
        instances_needed=math.ceil((spread / needed_error) ** 2),
    )


def decide(paired: Paired, p_adjusted: float, alpha: float = 0.05) -> Verdict:
    """The verdict in words. A difference can be real and still lie within the margin; then both are said."""
    margin = f"±{100 * paired.margin:g} points"
    equivalent = paired.p_tost < alpha
    if p_adjusted < alpha:
        word = "better" if paired.difference > 0 else "worse"
        return Verdict(word, f"{word}, yet equivalent within {margin}" if equivalent else word)
    if equivalent:
        return Verdict("equivalent", f"equivalent within {margin}")
    if paired.repeats_needed is not None:
        return Verdict("inconclusive", f"inconclusive: needs about {paired.repeats_needed} repeats")
    return Verdict("inconclusive", f"inconclusive: needs about {paired.instances_needed} instances")


def _t_interval(differences: Vector, confidence: float) -> Interval:
    """Student's interval of the mean paired difference (Miller 2024, arXiv 2411.00640), within the possible [-1, 1]."""
    found = stats.ttest_1samp(differences, 0.0).confidence_interval(confidence)
    return Interval(max(-1.0, float(found.low)), min(1.0, float(found.high)))


def _uniform_interval(differences: Vector, confidence: float) -> Interval:
    """Interval where all n differences equal d: at most u of all instances differ from d (Clopper-Pearson for 0 of n),
    and those lie anywhere in [-1, 1]."""
    value = float(differences[0])
    rare = float(stats.binomtest(0, len(differences)).proportion_ci(confidence, method="exact").high)
    return Interval(value - rare * (1 + value), value + rare * (1 - value))


def _tost(differences: Vector, margin: float) -> float:
    """Two one-sided t tests (Schuirmann 1987): small when the mean difference lies within the margin."""
    lower = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    upper = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(lower, upper))


def _uniform_tost(differences: Vector, margin: float) -> float:
    """TOST where all n differences equal d: a mean beyond the margin needs a share of other instances that n draws
    would miss with this probability."""
    value, n = float(differences[0]), len(differences)
    if abs(value) >= margin:
        return 1.0
    return float((1 - (margin - abs(value)) / (1 + abs(value))) ** n)


def _bound_spread(n: int) -> float:
    """Standard deviation of differences to plan with where n of them showed none: one discordant instance in n + 1."""
    return math.sqrt(1 / (n + 1))


def _settling_error(margin: float) -> float:
    """Standard error at which a difference of `margin` is found, and equivalence shown, with 80% power each."""
    find = float(stats.norm.isf(0.025) + stats.norm.ppf(POWER))
    equate = float(stats.norm.isf(0.05) + stats.norm.ppf((1 + POWER) / 2))
    return margin / max(find, equate)


def _repeats_needed(base: Sample, other: Sample, spread: float, repeats: float, needed_error: float) -> int | None:
    """Repeats per arm at which the standard error falls to `needed_error`, None where instances differ too much.

    Variance of a difference is (run noise of both arms) / repeats + (true differences between instances). One repeat
    cannot tell them apart; then all of it counts as run noise, the hopeful reading.
    """
    n = len(base.means)
    noise = base.noise + other.noise
    noise = spread**2 * repeats if math.isnan(noise) else min(noise, spread**2 * repeats)
    lasting = max(0.0, spread**2 - noise / repeats)
    room = n * needed_error**2 - lasting
    if room <= 0 or noise <= 0:
        return None
    return max(math.ceil(noise / room), math.floor(repeats) + 1)
