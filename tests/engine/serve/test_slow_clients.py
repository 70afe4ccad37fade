"""Clients that do not read or that leave, at a real engine."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serve_fixtures import Server, running_server

from engine.config import EngineConfig
from engine.serve.guard.connection import Connection
from engine.serve.opening import open_service

COMPLETIONS = "/v1/completions"
CHOICES, TOKENS = 6, 100


@pytest.fixture(scope="module")
def tiny() -> Iterator[Server]:
    config = EngineConfig(max_context=256, num_blocks=400, max_running=16, device="cpu")
    with running_server(lambda: open_service("synthetic:tiny", "f32", config, "tiny")) as server:
        server.wait_until(lambda: server.session.state == "ready", 60)
        yield server


def connect(server: Server, **fields: Any) -> socket.socket:
    """A client that has sent its request and has read nothing."""
    data = json.dumps(
        {"prompt": "x", "max_tokens": TOKENS, "stream": True, "logprobs": 20, "seed": 1, **fields}
    ).encode()
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
    )
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(server.address)
    client.sendall(head.encode() + b"\r\n" + data)
    return client


def in_use(server: Server) -> tuple[int, int, int]:
    stats = server.session.stats
    return stats["running"], stats["blocks_used"], stats["state_slots_used"]


def test_who_does_not_read_holds_its_own_answer_and_nothing_else(tiny: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(tiny, n=CHOICES):
        tiny.wait_until(lambda: bool(tiny.session._streams))
        stream = next(iter(tiny.session._streams.values()))
        assert tiny.post(COMPLETIONS, {"prompt": "y", "max_tokens": 3}).status_code == 200
        tiny.wait_until(lambda: stream.is_done, 60)
        kept = sum(len(output.token_ids) for outputs in stream._pending.values() for output in outputs)
        assert 0 < kept < CHOICES * TOKENS
        assert in_use(tiny) == (0, 0, 0)
        assert tiny.app_server._traffic.open == 1
    tiny.wait_until(lambda: tiny.app_server._traffic.open == 0)


def test_who_does_not_read_for_long_is_cut_though_the_answer_is_done(
    tiny: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "stall_seconds", 0.2)
    with connect(tiny, n=CHOICES) as client:
        tiny.wait_until(lambda: tiny.app_server._traffic.open == 1)
        tiny.wait_until(lambda: tiny.app_server._traffic.open == 0, 60)
        client.settimeout(20)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer
    assert b"[DONE]" not in answer
    tiny.wait_until(lambda: in_use(tiny) == (0, 0, 0))


def test_who_reads_late_gets_all(tiny: Server) -> None:
    with connect(tiny, n=CHOICES) as client:
        tiny.wait_until(lambda: bool(tiny.session._streams))
        tiny.wait_until(lambda: not tiny.session._streams, 60)
        client.settimeout(20)
        answer = b""
        while b"data: [DONE]" not in answer:
            answer += client.recv(65536)
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    for index in (0, CHOICES - 1):
        mine = [choice for choice in choices if choice["index"] == index]
        plain = tiny.post(COMPLETIONS, {"prompt": "x", "max_tokens": TOKENS, "logprobs": 20, "seed": 1 + index}).json()
        whole = plain["choices"][0]
        assert "".join(choice["text"] for choice in mine) == whole["text"]
        assert mine[-1]["finish_reason"] == whole["finish_reason"]


@pytest.mark.parametrize("late", [False, True])
def test_who_leaves_frees_all_within_a_step(tiny: Server, late: bool) -> None:
    before = tiny.session.stats["generated_tokens"]
    with connect(tiny):
        tiny.wait_until(
            lambda: tiny.session.stats["generated_tokens"] >= before + 5 * late and bool(tiny.session._streams)
        )
    tiny.wait_until(lambda: not tiny.session._streams)
    tokens = tiny.session.stats["generated_tokens"]
    tiny.wait_until(lambda: in_use(tiny) == (0, 0, 0))
    assert tiny.session.stats["generated_tokens"] <= tokens + 2
    assert httpx.get(f"{tiny.url}/ready").status_code == 200
