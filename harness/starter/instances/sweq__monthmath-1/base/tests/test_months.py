from datetime import date

import pytest

from monthmath import add_months, end_of_month, months_between


@pytest.mark.parametrize(
    ("day", "last"),
    [(date(2023, 2, 5), 28), (date(2024, 2, 29), 29), (date(2024, 4, 1), 30), (date(2024, 12, 31), 31)],
    ids=["february", "leap-february", "april", "december"],
)
def test_end_of_month(day, last):
    assert end_of_month(day) == day.replace(day=last)


def test_add_months_within_the_year():
    assert add_months(date(2024, 1, 15), 3) == date(2024, 4, 15)


def test_add_no_month():
    assert add_months(date(2024, 5, 31), 0) == date(2024, 5, 31)


def test_add_months_over_the_year():
    assert add_months(date(2023, 11, 15), 3) == date(2024, 2, 15)


def test_subtract_months():
    assert add_months(date(2024, 5, 15), -3) == date(2024, 2, 15)


@pytest.mark.parametrize(
    ("start", "end", "months"),
    [
        (date(2024, 1, 15), date(2024, 3, 15), 2),
        (date(2024, 1, 15), date(2024, 3, 14), 1),
        (date(2024, 1, 31), date(2024, 2, 29), 1),
        (date(2024, 3, 15), date(2024, 1, 15), -2),
    ],
    ids=["whole", "one-day-short", "end-of-month", "backwards"],
)
def test_months_between(start, end, months):
    assert months_between(start, end) == months
