"""Bounded capture of a command's output."""


class CappedOutput:
    """Keeps the first and the last half of `limit` bytes of a stream of any length; memory stays below 2 x `limit`."""

    def __init__(self, limit: int) -> None:
        if limit < 2:
            raise ValueError(f"output limit must be at least 2 bytes, not {limit}")
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def feed(self, data: bytes) -> None:
        """Add the next bytes of the stream."""
        self._total += len(data)
        room = self._head_limit - len(self._head)
        self._head += data[:room]
        self._tail += data[max(room, 0) :]
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: -self._tail_limit]

    @property
    def dropped(self) -> int:
        """Bytes left out of the middle."""
        return max(0, self._total - self._head_limit - self._tail_limit)

    def text(self) -> str:
        """Head and tail decoded as UTF-8 with replacement; a line between them says how much is missing."""
        tail = bytes(self._tail[-self._tail_limit :])
        if not self.dropped:
            return (bytes(self._head) + tail).decode(errors="replace")
        gap = f"\n[... {self.dropped} bytes of output dropped ...]\n"
        return self._head.decode(errors="replace") + gap + tail.decode(errors="replace")
