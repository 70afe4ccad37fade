"""Function results kept in a cache."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ttlcache.cache import TTLCache

Result = TypeVar("Result")


def cached(cache: TTLCache) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator: calls with equal arguments within the cache's ttl run the function once."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Result:
            key = (function.__qualname__, args, tuple(sorted(kwargs.items())))
            missing = object()
            value = cache.get(key, missing)
            if value is missing:
                value = function(*args, **kwargs)
                cache[key] = value
            return value

        return wrapper

    return decorate
