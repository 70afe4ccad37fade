"""How far a judge agrees with labels given by hand: a table of counts, and Cohen's kappa with its interval."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4_999
SEED = 20_231


@dataclass(frozen=True)
class Agreement:
    """`counts[label, verdict]` over `n` answers, the share `agreed`, and `kappa` with its 95% interval."""

    n: int
    agreed: float
    kappa: float
    low: float
    high: float
    counts: dict[tuple[str, str], int]


def measure_agreement(clusters: Mapping[str, Sequence[tuple[str, str]]]) -> Agreement:
    """Agreement of (label, verdict) pairs, given by cluster: variants of one page are no independent answers."""
    pairs = [pair for cluster in clusters.values() for pair in cluster]
    low, high = bound_kappa(list(clusters.values()))
    agreed = sum(label == verdict for label, verdict in pairs) / len(pairs)
    return Agreement(len(pairs), agreed, compute_kappa(pairs), low, high, dict(Counter(pairs)))


def compute_kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Cohen's kappa, (p_o - p_e) / (1 - p_e): p_o the share of equal pairs, p_e the share that the two raters' margins
    make likely by chance (Cohen 1960, Educational and Psychological Measurement 20, 37-46).

    Any categories; a verdict that no label has, such as `unscored`, only disagrees. NaN where p_e is 1.
    """
    return float(_compute_kappas(_tabulate([pairs]))[0])


def bound_kappa(
    clusters: Sequence[Sequence[tuple[str, str]]], resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """95% percentile interval of kappa: whole clusters are drawn anew (Efron and Tibshirani 1993, chapters 8 and 13).

    Draws whose kappa does not exist are left out; NaN where none has one.
    """
    drawn = np.random.default_rng(seed).integers(len(clusters), size=(resamples, len(clusters)))
    times = np.stack([(drawn == number).sum(axis=1) for number in range(len(clusters))], axis=1)
    kappas = _compute_kappas(np.tensordot(times, _tabulate(clusters), axes=1))
    known = kappas[~np.isnan(kappas)]
    if known.size == 0:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _tabulate(clusters: Sequence[Sequence[tuple[str, str]]]) -> npt.NDArray[np.float64]:
    """Counts [cluster, label, verdict] over all categories that occur."""
    names = sorted({name for cluster in clusters for pair in cluster for name in pair})
    tables = np.zeros((len(clusters), len(names), len(names)))
    for table, cluster in zip(tables, clusters, strict=True):
        for label, verdict in cluster:
            table[names.index(label), names.index(verdict)] += 1
    return tables


def _compute_kappas(tables: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Kappa of each table [label, verdict] of `tables`."""
    n = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / n
    expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappas: npt.NDArray[np.float64] = np.where(expected == 1.0, np.nan, (observed - expected) / (1.0 - expected))
    return kappas
