"""Output that the daemon sends along with the headers of its answer."""

import http.client
import socket
from types import SimpleNamespace

import pytest

from harness.sandbox.frames import take_read_ahead

HEADERS = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
FRAME = b"\x01\x00\x00\x00\x00\x00\x00\x06hello\n"


@pytest.mark.parametrize("early", [b"", FRAME, FRAME[:5]])
def test_what_came_with_the_headers_is_not_lost(early):
    daemon, client = socket.socketpair()
    with daemon, client:
        daemon.sendall(HEADERS + early)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        connection = SimpleNamespace(_sock=client, _response=SimpleNamespace(raw=SimpleNamespace(_fp=answer)))
        assert take_read_ahead(connection) == early
        assert client.gettimeout() is None
        answer.close()
