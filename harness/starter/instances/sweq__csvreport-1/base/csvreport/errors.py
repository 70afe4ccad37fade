"""What can go wrong with a report."""


class ReportError(ValueError):
    """The data does not fit what was asked."""
