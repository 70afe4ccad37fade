"""A small in-process cache with a size limit and expiry."""

from ttlcache.cache import TTLCache
from ttlcache.decorator import cached

__all__ = ["TTLCache", "cached"]
