"""Trying a step again when the machine, not the model, made it fail."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from harness.errors import EndpointError, UserError

T = TypeVar("T")

ATTEMPTS = 3
"""Starts of a step that the machine fails, before the task ends as `infra_error`."""

DOUBTFUL_ATTEMPTS = 2
"""Starts of a step that ended by the wall clock or without a trustworthy log: these cost their full time again."""


class ServerCrashedError(EndpointError):
    """The level's server ended while the task was at work, which as a rule another task or the machine caused."""


class ServerLostError(EndpointError):
    """The level's server ended and could not be started again: the run stops instead of failing task after task."""


@dataclass(frozen=True)
class Tried(Generic[T]):
    """The last attempt's result, or the reason why there is none. `attempts` counts all starts."""

    result: T | None
    attempts: int
    reason: str = ""


async def try_repeatedly(
    attempt: Callable[[], Awaitable[T]],
    is_sound: Callable[[T], bool],
    *,
    places: asyncio.Semaphore,
    pauses: tuple[float, float],
    report: Callable[[str, Exception | None], None],
) -> Tried[T]:
    """Attempt a step, in one of `places`, until it is sound; a pause (seconds) between two attempts holds no place.

    Crashes of the server have a count of their own, so that they use up none of a task's attempts. `report` hears what
    went wrong, with the exception if there was one. Raises `UserError` and `ServerLostError`, which no attempt mends.
    """
    tried: Tried[T] = Tried(None, 0)
    counted = crashes = 0
    while counted < ATTEMPTS and crashes < ATTEMPTS:
        if counted + crashes:
            await asyncio.sleep(pauses[min(max(counted, crashes), len(pauses)) - 1])
        try:
            async with places:
                result = await attempt()
        except (UserError, ServerLostError):
            raise
        except Exception as error:
            crashed = isinstance(error, ServerCrashedError)
            crashes, counted = crashes + crashed, counted + (not crashed)
            tried = Tried(None, counted + crashes, f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
            report(f"attempt {tried.attempts} failed: {tried.reason}", error)
            continue
        counted += 1
        tried = Tried(result, counted + crashes)
        if is_sound(result) or counted >= DOUBTFUL_ATTEMPTS:
            break
        report(f"attempt {tried.attempts} ended in doubt, trying once more", None)
    return tried
