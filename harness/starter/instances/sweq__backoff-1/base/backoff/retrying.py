"""Calling under a policy."""

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from backoff.policy import Policy

Result = TypeVar("Result")


class GaveUp(Exception):
    """Every attempt failed. `attempts` says how many there were; the last error is the cause."""

    def __init__(self, attempts: int) -> None:
        super().__init__(f"gave up after {attempts} attempt{'s' if attempts > 1 else ''}")
        self.attempts = attempts


def call(
    function: Callable[[], Result],
    policy: Policy,
    on: tuple[type[Exception], ...] = (Exception,),
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """The result of `function()`, tried again after each error that is listed in `on`.

    Any other error passes through at once. Raises `GaveUp` when no attempt is left.
    """
    delays = policy.delays()
    attempts = 0
    while True:
        attempts += 1
        try:
            return function()
        except on as error:
            delay = next(delays, None)
            if delay is None:
                raise GaveUp(attempts) from error
        sleep(delay)


def retry(
    policy: Policy,
    on: tuple[type[Exception], ...] = (Exception,),
    sleep: Callable[[float], None] = time.sleep,
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator: every call of the function goes through `call`."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Result:
            return call(functools.partial(function, *args, **kwargs), policy, on, sleep)

        return wrapper

    return decorate
