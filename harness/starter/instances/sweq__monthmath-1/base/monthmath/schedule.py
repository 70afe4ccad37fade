"""When invoices are due."""

from collections.abc import Collection
from datetime import date

from monthmath.business import next_business_day
from monthmath.months import add_months


def due_dates(first: date, count: int, every: int = 1, holidays: Collection[date] = ()) -> list[date]:
    """`count` due dates, `every` months apart, beginning with `first`.

    A date that is no business day moves to the next one; the dates after it do not move along.
    """
    if count < 0:
        raise ValueError("count must not be negative")
    if every < 1:
        raise ValueError("every must be at least 1")
    planned = (add_months(first, every * number) for number in range(count))
    return [next_business_day(day, holidays) for day in planned]
