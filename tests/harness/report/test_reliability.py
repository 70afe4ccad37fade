"""Repeats: unbiased estimators against enumeration, flips against simulation, costs against scipy."""

import itertools

import numpy as np
import pytest

from harness.report.figures import Sample
from harness.report.reliability import count_flips, pass_at_k, pass_hat_k, shift


def sample(means, repeats):
    means = np.asarray(means, dtype=np.float64)
    return Sample(means, np.full(len(means), float(repeats)))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_counts_every_choice_of_repeats(k):
    solved = [0, 1, 3, 5]
    choices = [list(itertools.combinations([True] * c + [False] * (5 - c), k)) for c in solved]
    found = sample(np.array(solved) / 5, 5)
    assert pass_at_k(found, k) == pytest.approx(np.mean([np.mean([any(one) for one in of]) for of in choices]))
    assert pass_hat_k(found, k) == pytest.approx(np.mean([np.mean([all(one) for one in of]) for of in choices]))


def test_too_few_repeats_say_nothing():
    assert np.isnan(pass_at_k(sample([0.5, 1.0], 2), 3))


def test_excess_flips_vanish_for_equal_levels_and_count_lasting_ones():
    rng = np.random.default_rng(2)
    rates = rng.beta(0.4, 0.4, 40_000)
    one, same = (sample(rng.binomial(5, rates) / 5, 5) for _ in range(2))
    found = count_flips(one, same)
    assert found.cross == pytest.approx(np.mean(2 * rates * (1 - rates)), abs=0.005)
    assert found.excess == pytest.approx(0, abs=0.005)
    turned = np.where(np.arange(40_000) % 10 == 0, 1 - rates, rates)
    excess = count_flips(one, sample(rng.binomial(5, turned) / 5, 5)).excess
    assert excess == pytest.approx(np.mean((rates - turned) ** 2), abs=0.005)


def test_a_single_repeat_cannot_tell_chance():
    found = count_flips(sample([1, 0, 1, 0], 1), sample([0, 0, 1, 1], 1))
    assert found.cross == 0.5
    assert np.isnan(found.excess)


def test_shift_is_wilcoxon_s():
    base = np.array([10.0, 12, 9, 14, 20, 11, 8, 30])
    assert shift(base, base).p == 1.0
    found = shift(base, base + np.array([1.0, 2, 3, 4, 5, 6, 7, 8]))
    assert (found.median, found.p) == (4.5, pytest.approx(2 / 2**8))
