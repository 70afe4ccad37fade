from datetime import date

import pytest

from monthmath import add_business_days, due_dates, next_business_day


def test_weekend_moves_to_monday():
    assert next_business_day(date(2024, 6, 1)) == date(2024, 6, 3)


def test_holiday_moves_on():
    assert next_business_day(date(2024, 5, 1), holidays={date(2024, 5, 1)}) == date(2024, 5, 2)


def test_add_business_days():
    assert add_business_days(date(2024, 6, 6), 3) == date(2024, 6, 11)
    assert add_business_days(date(2024, 6, 11), -3) == date(2024, 6, 6)


def test_due_dates():
    assert due_dates(date(2024, 4, 15), 3) == [date(2024, 4, 15), date(2024, 5, 15), date(2024, 6, 17)]


def test_quarterly_due_dates():
    assert due_dates(date(2024, 1, 10), 3, every=3) == [date(2024, 1, 10), date(2024, 4, 10), date(2024, 7, 10)]


def test_wrong_step_is_refused():
    with pytest.raises(ValueError, match="every"):
        due_dates(date(2024, 1, 10), 2, every=0)
