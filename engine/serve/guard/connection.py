"""One client's connection: uvicorn's HTTP protocol, with limits on clients that write or read too slowly."""

import asyncio
import logging
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 << 10


class SlowClientLimits(asyncio.Protocol):
    """Mixed into one of uvicorn's protocols, which has no such limits but between requests.

    A connection is cut when a request's head is not there `header_seconds` after its first byte (or after connecting)
    or has more than MAX_HEADER_BYTES, and when a client takes nothing of what is sent to it for `stall_seconds`. The
    application then sees a disconnect. Costs nothing per event that is sent.
    """

    header_seconds: ClassVar[float] = 10.0
    stall_seconds: ClassVar[float] = 60.0

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any

    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _unsent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # What the kernel does not take is the protocol's to know at once: it is the sign of a slow reader.
        self.transport.set_write_buffer_limits(high=0)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting_for_head()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting_for_head()
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._cut("sent a head without an end")
        elif self._header_timer is None and not self.transport.is_closing():
            self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._stop_stall_timer()
        self._stall_timer = self.loop.call_later(self.stall_seconds, self._check_progress)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _check_progress(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self._cut("does not read")
            return
        self._unsent = unsent
        self._stall_timer = self.loop.call_later(self.stall_seconds, self._check_progress)

    def _wait_for_head(self) -> None:
        self._header_timer = self.loop.call_later(self.header_seconds, self._cut, "sent no complete head in time")

    def _stop_waiting_for_head(self) -> None:
        self._header_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _cut(self, reason: str) -> None:
        logger.info("connection cut: the client %s", reason)
        self.transport.abort()


class Connection(SlowClientLimits, H11Protocol):
    """uvicorn's protocol over h11 with limits on slow clients."""
