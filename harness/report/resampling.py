"""Intervals and tests by resampling: instances are drawn anew, and their repeats travel with them or are drawn within.

Seeds are fixed, so that equal data give equal figures.
"""

import math
import warnings

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.report.figures import Interval

Vector = npt.NDArray[np.float64]

RESAMPLES = 9_999
SEED = 20_231
_BATCH = 500


def bootstrap_mean(values: Vector, confidence: float = 0.95) -> Interval:
    """BCa bootstrap interval of the mean of float64 [n] (Efron 1987), fixed seed.

    `values` must not all be equal. Where BCa is undefined (too few distinct resamples) the percentile interval.
    """
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (values,),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=confidence,
                method=method,
                batch=_BATCH,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    return Interval(float(found.low), float(found.high))


def bootstrap_nested(means: Vector, repeats: Vector, confidence: float = 0.95) -> Interval:
    """Nested bootstrap of the mean of `means` (float64 [n], solved shares of `repeats` tries): instances are drawn,
    then tries within each (Davison & Hinkley 1997, section 3.8). Bias-corrected and accelerated, as in Efron 1987.

    `means` must not all be equal. Outcomes are binary, so tries drawn with replacement are one binomial draw.
    """
    rng, n = np.random.default_rng(SEED), len(means)
    drawn = np.empty(RESAMPLES)
    tries = repeats.astype(np.int64)
    for start in range(0, RESAMPLES, _BATCH):
        count = min(_BATCH, RESAMPLES - start)
        chosen = rng.integers(0, n, (count, n))
        drawn[start : start + count] = (rng.binomial(tries[chosen], means[chosen]) / tries[chosen]).mean(axis=1)
    value = means.mean()
    # Half of the ties: means of few binary outcomes repeat themselves.
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / RESAMPLES
    shift = float(stats.norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES)))
    acceleration = float(stats.skew(means)) / (6 * math.sqrt(n))
    tail = float(stats.norm.isf((1 - confidence) / 2))
    ends = [shift + (shift + z) / (1 - acceleration * (shift + z)) for z in (-tail, tail)]
    found = [float(np.quantile(drawn, float(stats.norm.cdf(end)))) for end in ends]
    return Interval(found[0], found[1])


def sign_flip(differences: Vector) -> float:
    """Two-sided p of the mean of float64 [n] under random signs; exact where the sign patterns are few."""
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)
