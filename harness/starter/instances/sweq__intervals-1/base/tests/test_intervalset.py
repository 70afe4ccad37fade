from intervals import Interval, IntervalSet


def test_overlapping_intervals_become_one():
    assert list(IntervalSet([Interval(4, 6), Interval(1, 5)])) == [Interval(1, 6)]


def test_nested_interval_vanishes():
    assert list(IntervalSet([Interval(1, 9), Interval(3, 4)])) == [Interval(1, 9)]


def test_apart_intervals_stay():
    assert list(IntervalSet([Interval(5, 6), Interval(1, 2)])) == [Interval(1, 2), Interval(5, 6)]


def test_union_and_length():
    union = IntervalSet([Interval(0, 2)]) | IntervalSet([Interval(1, 5)])
    assert union.length == 5


def test_intersection():
    left = IntervalSet([Interval(0, 4), Interval(6, 9)])
    assert list(left & IntervalSet([Interval(3, 7)])) == [Interval(3, 4), Interval(6, 7)]


def test_gaps():
    busy = IntervalSet([Interval(9, 11), Interval(13, 14)])
    assert busy.gaps(Interval(8, 18)) == [Interval(8, 9), Interval(11, 13), Interval(14, 18)]


def test_gaps_of_full_day():
    assert IntervalSet([Interval(0, 24)]).gaps(Interval(8, 18)) == []
