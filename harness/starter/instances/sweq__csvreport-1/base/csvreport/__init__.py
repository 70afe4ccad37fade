"""Text tables from CSV files."""

from csvreport.errors import ReportError
from csvreport.report import report

__all__ = ["ReportError", "report"]
