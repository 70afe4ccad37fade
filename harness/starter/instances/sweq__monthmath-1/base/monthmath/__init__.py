"""Calendar arithmetic for invoices."""

from monthmath.business import add_business_days, next_business_day
from monthmath.months import add_months, end_of_month, months_between
from monthmath.schedule import due_dates

__all__ = [
    "add_business_days",
    "add_months",
    "due_dates",
    "end_of_month",
    "months_between",
    "next_business_day",
]
