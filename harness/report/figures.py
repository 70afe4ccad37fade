"""The small values that statistics pass around: intervals, estimates, and one level's sample."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """Closed interval of fractions."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure with its interval; `method` names how the interval was found."""

    value: float
    interval: Interval
    method: str


@dataclass(frozen=True)
class Sample:
    """One level on n instances: `means` (float64 [n], share of repeats solved), `repeats` (float64 [n], how many)."""

    means: Vector
    repeats: Vector

    @property
    def is_single(self) -> bool:
        """Whether every instance was tried once, so that outcomes are binary."""
        return bool(np.all(self.repeats == 1))

    @property
    def solved(self) -> Vector:
        """Solved repeats of each instance, whole numbers as float64 [n]."""
        return np.rint(self.means * self.repeats)

    @property
    def noise(self) -> float:
        """Mean run-to-run variance of one repeat, E[p(1-p)], unbiased; NaN where no instance was repeated."""
        again = self.repeats > 1
        if not again.any():
            return math.nan
        count = self.repeats[again]
        return float(np.mean(self.means[again] * (1 - self.means[again]) * count / (count - 1)))
