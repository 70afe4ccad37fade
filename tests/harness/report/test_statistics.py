"""Figures against published worked examples, identities and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from harness.report import resampling, statistics
from harness.report.figures import Sample
from harness.report.resampling import sign_flip
from harness.report.sensitivity import bound_clustered, bound_fixed
from harness.report.statistics import (
    compare_paired,
    decide,
    detectable_difference,
    estimate_score,
    holm,
    mcnemar,
    wilson,
)

DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=np.float64)
"""Differences in height, eighths of an inch, of Darwin's crossed and self-fertilised maize (Fisher 1935, ch. 3)."""


def sample(means, repeats=1):
    means = np.asarray(means, dtype=np.float64)
    return Sample(means, np.full(len(means), float(repeats)))


# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombe_s(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400), st.data())
@settings(max_examples=60, deadline=None)
def test_wilson_inverts_the_score_test(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        z = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert z == pytest.approx(stats.norm.isf(0.025), rel=1e-6)


def test_wilson_of_nothing_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_is_fagerland_s_worked_example():
    found = mcnemar(1, 7)  # airway hyper-responsiveness, BMC Medical Research Methodology 13:91
    assert (found.p, found.mid_p) == (pytest.approx(0.0703, abs=5e-5), pytest.approx(0.0391, abs=5e-5))


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_symmetric_and_mid_p_is_smaller(lost, won):
    one, other = mcnemar(lost, won), mcnemar(won, lost)
    assert (one.p, one.mid_p) == pytest.approx((other.p, other.mid_p))
    assert 0 < one.mid_p <= one.p <= 1


def test_sign_flip_is_fisher_s_exact_count(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 2**15)
    assert sign_flip(DARWIN) == pytest.approx(1726 / 32768)


def test_sign_flip_by_sampling_is_near_the_exact_count():
    assert sign_flip(DARWIN) == pytest.approx(1726 / 32768, abs=0.007)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_t_interval_is_fisher_s():
    paired = compare_paired(sample(np.zeros(15), 2), sample(DARWIN / 1000, 2), 0.02)
    assert paired.difference * 1000 == pytest.approx(20.933, abs=5e-4)
    assert paired.t_interval.low * 1000 == pytest.approx(0.03, abs=0.01)
    assert paired.t_interval.high * 1000 == pytest.approx(41.84, abs=0.01)


def test_detectable_difference_at_500_instances():
    found = [100 * detectable_difference(math.sqrt(2 * 0.055 / (500 * repeats))) for repeats in (1, 2, 3, 4, 5, 8, 10)]
    assert found == pytest.approx([4.2, 2.9, 2.4, 2.1, 1.9, 1.5, 1.3], abs=0.06)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 0.5]), min_size=3, max_size=40), st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_equivalence_is_the_90_percent_interval_within_the_margin(differences, margin):
    values = np.array(differences)
    if np.ptp(values) == 0:
        return
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.90)
    within = -margin < interval.low and interval.high < margin
    assert (statistics._tost(values, margin) < 0.05) == within


def test_repeats_needed_at_verified_size():
    base, other = np.zeros(500), np.zeros(500)
    base[:28], other[28:55] = 1, 1  # discordance .11, no difference to speak of
    paired = compare_paired(sample(base), sample(other), 0.02)
    assert paired.repeats_needed == 5
    assert decide(paired, 1.0).text == "inconclusive: needs about 5 repeats"


def test_lasting_differences_between_instances_need_instances_not_repeats():
    base = np.tile([0.0, 1.0], 50)
    paired = compare_paired(sample(base, 5), sample(1 - base, 5), 0.02)
    assert paired.repeats_needed is None
    assert decide(paired, 1.0).text == f"inconclusive: needs about {paired.instances_needed} instances"


@pytest.mark.parametrize("n", [1, 2, 12, 500])
@pytest.mark.parametrize("base", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("other", [0.0, 0.4, 1.0])
def test_uniform_arms_give_finite_honest_figures(n, base, other):
    paired = compare_paired(sample([base] * n, 5), sample([other] * n, 5), 0.02)
    figures = [*paired.t_interval, *paired.bootstrap, paired.p, paired.p_tost, paired.detectable]
    assert np.isfinite(figures).all()
    assert -1 <= paired.t_interval.low <= paired.difference <= paired.t_interval.high <= 1
    estimate = estimate_score(sample([base] * n, 5))
    assert estimate.interval.low <= estimate.value <= estimate.interval.high
    assert estimate.interval.high - estimate.interval.low > 0


def test_identical_arms_are_equivalent_only_with_enough_instances():
    few = compare_paired(sample([0.0] * 12), sample([0.0] * 12), 0.02)
    assert few.t_interval.high == pytest.approx(1 - 0.025 ** (1 / 12))
    assert decide(few, few.p).word == "inconclusive"
    many = compare_paired(sample([0.0] * 500), sample([0.0] * 500), 0.02)
    assert decide(many, many.p).text == "equivalent within ±2 points"


def test_verdict_words():
    base = np.zeros(400)
    worse = compare_paired(sample(1 - base), sample(np.r_[np.zeros(60), np.ones(340)]), 0.02)
    assert decide(worse, worse.p).text == "worse"
    better = compare_paired(sample(base), sample(np.r_[np.zeros(340), np.ones(60)]), 0.02)
    assert decide(better, better.p).text == "better"
    both = compare_paired(sample(base), sample(np.r_[np.zeros(340), np.ones(60)]), 0.5)
    assert decide(both, both.p).text == "better, yet equivalent within ±50 points"


def draw_levels(rng, n, repeats, gain=0.0):
    """Repeats of two levels on n fresh instances: [n] solved shares each; the second is `gain` better on average."""
    rates = rng.beta(0.5, 0.4, n)
    changed = rates + gain * (1 - rates) / (1 - 5 / 9)
    return rng.binomial(repeats, rates) / repeats, rng.binomial(repeats, changed) / repeats


@pytest.mark.parametrize("repeats", [1, 4])
def test_intervals_cover_and_tests_keep_their_level(repeats, monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 399)
    rng = np.random.default_rng(5)
    runs, n, gain = 250, 150, 0.05
    covered_t = covered_b = covered_score = rejected = 0
    for _ in range(runs):
        first, second = draw_levels(rng, n, repeats, gain)
        paired = compare_paired(sample(first, repeats), sample(second, repeats), 0.02)
        covered_t += paired.t_interval.low <= gain <= paired.t_interval.high
        covered_b += paired.bootstrap.low <= gain <= paired.bootstrap.high
        score = estimate_score(sample(first, repeats)).interval
        covered_score += score.low <= 5 / 9 <= score.high
        same = draw_levels(rng, n, repeats)
        difference = same[1] - same[0]
        p = mcnemar(int((difference < 0).sum()), int((difference > 0).sum())).p if repeats == 1 else None
        rejected += (sign_flip(difference) if p is None else p) < 0.05
    # 250 runs of a true 95% vary by 1.4 points (one standard deviation); three and a half of them on either side.
    assert [covered_t / runs, covered_b / runs, covered_score / runs] == pytest.approx([0.95] * 3, abs=0.05)
    assert rejected / runs < 0.05 + 0.05


@pytest.mark.parametrize(("lost", "won"), [(1, 7), (12, 5), (0, 3), (40, 41)])
def test_mcnemar_is_statsmodels_s(lost, won):
    oracle = contingency_tables.mcnemar([[10, lost], [won, 20]], exact=True)
    assert mcnemar(lost, won).p == pytest.approx(oracle.pvalue)


@pytest.mark.parametrize(("solved", "n"), [(0, 12), (7, 12), (353, 500), (500, 500)])
def test_wilson_is_statsmodels_s(solved, n):
    assert wilson(solved, n) == pytest.approx(proportion_confint(solved, n, method="wilson"), abs=1e-12)


def test_holm_and_equivalence_are_statsmodels_s():
    p_values = [0.013, 0.2, 0.0004, 0.04, 0.04]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    first, second = draw_levels(np.random.default_rng(1), 200, 3)
    oracle = ttost_paired(second, first, -0.02, 0.02)
    assert statistics._tost(second - first, 0.02) == pytest.approx(oracle[0])


def test_the_clustered_interval_is_statsmodels_s():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), rng.integers(3, 60, 12))
    values = rng.normal(0, 0.2, len(groups)) + rng.normal(0, 0.1, 12)[groups]
    fit = OLS(values, np.ones((len(values), 1))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    # statsmodels corrects by (n-1)/(n-k) too, which is 1 with the mean alone.
    assert bound_clustered(values, list(groups)) == pytest.approx(fit.conf_int()[0])


def test_simulated_intervals_keep_their_promise(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 199)
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        rates = rng.beta(0.5, 0.4, 200)
        one, other = (sample(rng.binomial(3, rates) / 3, 3) for _ in range(2))
        interval = bound_fixed(one.means, one.repeats, other.means, other.repeats)
        held += interval.low <= 0 <= interval.high
    # 400 runs of a true 95% vary by 1.1 points (one standard deviation).
    assert held / 400 == pytest.approx(0.95, abs=0.035)
