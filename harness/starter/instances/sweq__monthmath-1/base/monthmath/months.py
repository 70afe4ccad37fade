"""Months, which are not all equally long."""

import calendar
from datetime import date


def end_of_month(day: date) -> date:
    """The last day of the month that `day` lies in."""
    return day.replace(day=calendar.monthrange(day.year, day.month)[1])


def add_months(day: date, months: int) -> date:
    """The same day of the month, `months` months later (earlier when negative).

    Where that month is too short, its last day.
    """
    year = day.year + (day.month + months) // 12
    month = (day.month + months) % 12
    return day.replace(year=year, month=month)


def months_between(start: date, end: date) -> int:
    """Whole months from `start` to `end`; negative when `end` comes first."""
    if end < start:
        return -months_between(end, start)
    months = 12 * (end.year - start.year) + end.month - start.month
    reached = end.day >= start.day or end == end_of_month(end)
    return months if reached else months - 1
