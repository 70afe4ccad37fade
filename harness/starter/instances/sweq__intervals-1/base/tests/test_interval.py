import pytest

from intervals import Interval


def test_end_is_excluded():
    interval = Interval(1, 3)
    assert 1 in interval
    assert 3 not in interval


@pytest.mark.parametrize("end", [1, 0])
def test_empty_interval_is_refused(end):
    with pytest.raises(ValueError, match="start < end"):
        Interval(1, end)


def test_touching_intervals_do_not_overlap():
    assert not Interval(1, 2).overlaps(Interval(2, 3))
    assert Interval(1, 2).intersection(Interval(2, 3)) is None


def test_shift():
    assert Interval(1, 2).shift(0.5) == Interval(1.5, 2.5)
