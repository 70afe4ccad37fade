"""Budgets that can end an agent's work."""

from enum import StrEnum


class Limit(StrEnum):
    """The budget that ended an agent's work, recorded beside the verdict of whatever diff it left."""

    NONE = "none"
    STEPS = "step_limit"
    TOKENS = "token_limit"
    CONTEXT = "context_limit"
    FORMAT = "format_loop"
    WALL_CLOCK = "wall_clock"
