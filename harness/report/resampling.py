"""Intervals and tests by resampling: instances are drawn anew, and their repeats travel with them.

Repeats are not drawn again within an instance: shares of few repeats vary by chance already, and a second draw would
count that chance twice. Measured by `benchmarks/statistics_simulation.py`, 95% intervals of a score over three repeats
then held the truth in 97.1%. Seeds are fixed, so that equal data give equal figures.
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
