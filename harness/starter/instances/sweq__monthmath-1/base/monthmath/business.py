"""Days on which banks work."""

from collections.abc import Collection
from datetime import date, timedelta

_SATURDAY = 5


def is_business_day(day: date, holidays: Collection[date] = ()) -> bool:
    """Whether `day` is neither at a weekend nor in `holidays`."""
    return day.weekday() < _SATURDAY and day not in holidays


def next_business_day(day: date, holidays: Collection[date] = ()) -> date:
    """`day` itself if it is a business day, otherwise the first one after it."""
    while not is_business_day(day, holidays):
        day += timedelta(days=1)
    return day


def add_business_days(day: date, days: int, holidays: Collection[date] = ()) -> date:
    """The business day that lies `days` business days after `day` (before it when negative)."""
    step = timedelta(days=1 if days >= 0 else -1)
    left = abs(days)
    while left:
        day += step
        if is_business_day(day, holidays):
            left -= 1
    return day
