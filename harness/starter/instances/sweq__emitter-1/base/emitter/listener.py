"""One registered function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Listener:
    """A function that waits for an event.

    priority: listeners with a larger one are called first
    once: the listener is removed when it is called
    """

    event: str
    function: Callable[..., Any]
    priority: int = 0
    once: bool = False
