import random

import pytest

from backoff import Policy


def test_delays_grow():
    assert list(Policy(attempts=4, base=0.5).delays()) == [0.5, 1.0, 2.0]


def test_delays_stop_growing_at_max_delay():
    assert list(Policy(attempts=5, base=1.0, max_delay=3.0).delays()) == [1.0, 2.0, 3.0, 3.0]


def test_one_attempt_has_no_delay():
    assert list(Policy(attempts=1).delays()) == []


def test_jitter_lengthens_by_at_most_its_share():
    policy = Policy(attempts=200, base=2.0, factor=1.0, jitter=0.25, rng=random.Random(7))
    delays = list(policy.delays())
    assert all(2.0 <= delay <= 2.5 for delay in delays)
    assert max(delays) - min(delays) > 0.4


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"base": -1}, {"factor": 0.5}, {"jitter": 1.5}], ids=lambda wrong: next(iter(wrong))
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Policy(**wrong)
