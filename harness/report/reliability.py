"""What repeats tell beyond the mean: pass@k, pass^k, flips, and how many of them are no more than chance."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from harness.report.figures import Sample, Vector


def pass_at_k(sample: Sample, k: int) -> float:
    """Mean chance that at least one of `k` repeats solves an instance: 1 - C(n-c, k)/C(n, k), unbiased (Chen et al.
    2021, arXiv 2107.03374). Over instances with at least `k` repeats; NaN where there are none."""
    solved, repeats = _with_repeats(sample, k)
    if not len(repeats):
        return math.nan
    return float(np.mean(1 - special.comb(repeats - solved, k) / special.comb(repeats, k)))


def pass_hat_k(sample: Sample, k: int) -> float:
    """Mean chance that all of `k` repeats solve an instance, pass^k: C(c, k)/C(n, k), unbiased (Yao et al. 2024,
    arXiv 2406.12045). Over instances with at least `k` repeats; NaN where there are none."""
    solved, repeats = _with_repeats(sample, k)
    if not len(repeats):
        return math.nan
    return float(np.mean(special.comb(solved, k) / special.comb(repeats, k)))


@dataclass(frozen=True)
class Flips:
    """Disagreement of two levels, as shares of instances.

    `cross`: a repeat of one and a repeat of the other end differently. `own`: two repeats of the baseline do. `excess`
    = `cross` - mean of both levels' `own`, 0 where a level only draws its luck anew. NaN where repeats do not tell.
    """

    cross: float
    own_base: float
    own_other: float
    excess: float


def count_flips(base: Sample, other: Sample) -> Flips:
    """Flips of two samples over the same instances in the same order; every pair of repeats counts alike.

    `own` is unbiased, 2 p (1 - p) with n/(n - 1): a repeat is never compared with itself.
    """
    cross = float(np.mean(base.means * (1 - other.means) + other.means * (1 - base.means)))
    own = 2 * base.noise, 2 * other.noise
    return Flips(cross, own[0], own[1], cross - (own[0] + own[1]) / 2)


@dataclass(frozen=True)
class Shift:
    """How a cost of the other level differs from the baseline's, instance by instance: median difference and p."""

    median: float
    p: float


def shift(base: Vector, other: Vector) -> Shift:
    """Wilcoxon's signed-rank test of paired float64 [n] (zeros split as in Pratt 1959), two-sided."""
    differences = other - base
    if not np.any(differences):
        return Shift(0.0, 1.0)
    found = stats.wilcoxon(differences, zero_method="pratt")
    return Shift(float(np.median(differences)), float(found.pvalue))


def _with_repeats(sample: Sample, k: int) -> tuple[Vector, Vector]:
    enough = sample.repeats >= k
    return sample.solved[enough], sample.repeats[enough]
