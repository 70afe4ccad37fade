"""Calls that may fail for a moment, tried again with growing pauses."""

from backoff.policy import Policy
from backoff.retrying import GaveUp, call, retry

__all__ = ["GaveUp", "Policy", "call", "retry"]
