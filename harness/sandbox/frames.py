"""The output of a command in a container, as the daemon streams it."""

import select
import socket
import time
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

from harness.sandbox.layer import LayerCeiling
from harness.sandbox.output import CappedOutput


class End(Enum):
    """What ended a command."""

    ITSELF = auto()
    TIMEOUT = auto()
    DISK = auto()


def take_read_ahead(connection: Any) -> bytes:
    """What the HTTP client read of the stream along with the answer's headers, for `exec_start(socket=True)`.

    The client keeps it in a buffer of its own, where a reader of the bare socket never finds it: a command that speaks
    at once would lose its first words.
    """
    reader = connection._response.raw._fp.fp
    stream = getattr(connection, "_sock", connection)
    timeout = stream.gettimeout()
    stream.settimeout(0)
    try:
        return bytes(reader.peek())
    finally:
        stream.settimeout(timeout)


def drain(
    connection: socket.socket,
    captured: CappedOutput,
    deadline: float,
    ceiling: LayerCeiling | None,
    read_ahead: bytes,
) -> End:
    """Feed `captured` until the command's output ends, the deadline passes or the disk ceiling is exceeded.

    `read_ahead` is what of the stream was taken from `connection` before.
    """
    frames = _Frames()
    for payload in frames.split(read_ahead):
        captured.feed(payload)
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([connection], [], [], min(left, 1.0) if ceiling else left)
        if ready:
            data = connection.recv(1 << 16)
            if not data:
                return End.ITSELF
            for payload in frames.split(data):
                captured.feed(payload)
        if ceiling and ceiling.is_due() and ceiling.is_exceeded():
            return End.DISK
    return End.TIMEOUT


class _Frames:
    """Takes the daemon's stream apart: frames with 8 bytes of header, the last 4 their length (Docker Engine API)."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0

    def split(self, data: bytes) -> Iterator[bytes]:
        """The payloads in `data`, which may start or end amid a frame."""
        while data:
            if self._left == 0:
                missing = 8 - len(self._header)
                self._header += data[:missing]
                data = data[missing:]
                if len(self._header) < 8:
                    return
                self._left = int.from_bytes(self._header[4:])
                self._header.clear()
            payload = data[: self._left]
            self._left -= len(payload)
            data = data[len(payload) :]
            yield payload
