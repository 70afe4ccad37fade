"""How a task can end."""

from enum import StrEnum


class Outcome(StrEnum):
    """The verdict of one task. All but `WALL_CLOCK` and `INFRA_ERROR` are answers and count in the score."""

    RESOLVED = "resolved"
    UNRESOLVED = "unresolved"
    EMPTY_PATCH = "empty_patch"
    PATCH_FAILED = "patch_failed"
    WALL_CLOCK = "wall_clock"
    INFRA_ERROR = "infra_error"

    @property
    def is_answer(self) -> bool:
        """Whether the task's end says something of the model rather than of the machine."""
        return self not in (Outcome.WALL_CLOCK, Outcome.INFRA_ERROR)
