"""A container's writable layer has a ceiling, kept by measuring it: most storage drivers have no quota of their own."""

import time
from typing import Any

LARGE = 4 << 20
"""Bytes: above this, new files are removed from a layer that grew too large. No diff holds them anyway."""

_INTERVAL = 1.0


class LayerCeiling:
    """Watches one container's layer through the daemon, which alone may look into it. Sizes are bytes."""

    def __init__(self, api: Any, container_id: str, ceiling: int) -> None:
        self._api, self._id, self._ceiling = api, container_id, ceiling
        self._measured_at = time.monotonic()
        self._since = int(time.time())

    def is_due(self) -> bool:
        """Whether the last measurement is old enough for another one to be worth its cost."""
        return time.monotonic() - self._measured_at >= _INTERVAL

    def is_exceeded(self) -> bool:
        """Measure; at most `_INTERVAL` seconds of writing can go unseen."""
        found = self._api.containers(all=True, size=True, filters={"id": self._id})
        self._measured_at = time.monotonic()
        return bool(found) and found[0].get("SizeRw", 0) > self._ceiling

    def freeing_command(self) -> str:
        """A command that removes the large files made since the container was: by ctime, which cannot be forged."""
        return f"find / -xdev -type f -size +{LARGE}c -newerct @{self._since} -delete"

    def explain(self) -> str:
        """What the command's output ends with."""
        return (
            f"\n[sandbox: ended, because the files written took more than {self._ceiling >> 20} MiB; "
            f"new files above {LARGE >> 20} MiB were removed]\n"
        )
