"""What a careless or hostile client meets: bounds on bodies, queues, heads and reading."""

import concurrent.futures
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_fixtures import ScriptedEngine, Server, running_server, scripted_service

from engine.serve.guard import body
from engine.serve.guard.body import MAX_CONTAINERS, MAX_DEPTH, MAX_VALUES, RefusedError, check_json
from engine.serve.guard.connection import Connection

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}",\\é\n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """A server that takes 1,000 bytes and two requests at once."""
    with running_server(scripted_service, max_body=1000, max_open=2) as server:
        server.wait_until(lambda: server.session.state == "ready")
        yield server


def engine_of(server: Server) -> ScriptedEngine:
    assert server.session.service is not None
    assert isinstance(server.session.service.engine, ScriptedEngine)
    return server.session.service.engine


def raw(server: Server, data: bytes, seconds: float = 10) -> bytes:
    """All that the server answers to `data` until it closes the connection."""
    with socket.create_connection(server.address, timeout=seconds) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_is_refused_in_the_shape_of_its_api(small: Server, chunked: bool) -> None:
    data = json.dumps(HELLO | {"user": "x" * 2000}).encode()
    content: Any = iter([data[:600], data[600:]]) if chunked else data
    answer = httpx.post(small.url + CHAT, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")
    assert "1000 bytes" in answer.json()["error"]["message"]
    anthropic = httpx.post(small.url + "/v1/messages", content=data)
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (413, "request_too_large")


def test_a_declared_size_is_refused_before_the_body_comes(small: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "LINGER_SECONDS", 0.1)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n{{"
    assert raw(small, head.encode()).startswith(b"HTTP/1.1 413 ")
    assert small.post(CHAT, HELLO).status_code == 200


@given(JSON)
def test_depth_is_counted_outside_of_strings(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "MAX_DEPTH", 2)
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
            try:
                check_json(text.encode())
                refused = False
            except RefusedError:
                refused = True
            assert refused == (depth(value) > 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 10**5, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (b"[{},[]," * MAX_CONTAINERS, f"more than {MAX_CONTAINERS} JSON objects and arrays"),
        (b"1," * (MAX_VALUES + 1), f"more than {MAX_VALUES} JSON values"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        ('{"a": 1}'.encode("utf-16-le"), "NUL"),
    ],
)
def test_json_that_would_take_too_much_is_refused(scripted: Server, data: bytes, message: str) -> None:
    answer = httpx.post(scripted.url + CHAT, content=data, headers={"content-type": "application/json"}, timeout=30)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_that_is_not_said_to_be_json_is_told_so(scripted: Server, kind: str | None) -> None:
    answer = httpx.post(scripted.url + CHAT, content=b"{}", headers={"content-type": kind} if kind else {})
    assert (answer.status_code, "content-type: application/json" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 10**7}]}),
        ("/v1/completions", {"prompt": "x" * 10**7}),
        ("/tokenize", {"prompt": "x" * 10**7}),
    ],
)
def test_a_text_far_beyond_the_context_is_not_tokenized(scripted: Server, path: str, fields: dict[str, Any]) -> None:
    error = scripted.post(path, fields).json()["error"]
    assert (error["code"], error["message"]) == ("context_length_exceeded", "the text has more than 800 tokens")


def test_requests_beyond_the_queue_get_429_and_others_go_on(small: Server) -> None:
    engine = engine_of(small)
    engine.gate.clear()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        held = [pool.submit(small.post, CHAT, HELLO) for _ in range(2)]
        small.wait_until(lambda: len(small.session._streams) == 2)
        refused = small.post(CHAT, HELLO)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "queue_full"
        assert small.post("/v1/messages", {}).json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(f"{small.url}/ready").status_code == 200
        engine.gate.set()
        assert [answer.result().status_code for answer in held] == [200, 200]
    assert small.post(CHAT, HELLO).status_code == 200


def test_draining_finishes_streams_and_tells_new_requests() -> None:
    with running_server(scripted_service) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        server.wait_until(lambda: server.session.state == "ready")
        engine = engine_of(server)
        engine.gate.clear()
        running = pool.submit(server.post, CHAT, HELLO | {"stream": True})
        server.wait_until(lambda: bool(server.session._streams))
        server.app_server.should_exit = True
        server.wait_until(lambda: httpx.get(f"{server.url}/ready").json() == {"status": "draining"})
        assert httpx.get(f"{server.url}/ready").status_code == 503
        late = server.post(CHAT, HELLO)
        assert (late.status_code, late.headers["retry-after"]) == (503, "5")
        assert late.json()["error"]["message"] == "the server is shutting down"
        engine.gate.set()
        assert running.result().text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("data", [b"", b"GET /health HT", b"GET / HTTP/1.1\r\nx: " + b"y" * 80_000])
def test_a_head_that_does_not_end_is_cut(scripted: Server, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "header_seconds", 0.2)
    with contextlib.suppress(ConnectionResetError):
        assert b"200" not in raw(scripted, data)


def test_the_next_head_of_a_connection_is_bounded_too(scripted: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "header_seconds", 0.2)
    client = http.client.HTTPConnection(*scripted.address, timeout=10)
    for _ in range(2):
        client.request("GET", "/health")
        assert client.getresponse().read() == b'{"status":"ok"}'
        time.sleep(0.3)
    client.sock.sendall(b"GET")
    with contextlib.suppress(ConnectionResetError):
        assert client.sock.recv(65536) == b""
    client.close()


def test_a_body_that_does_not_come_is_given_up(scripted: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(body, "LINGER_SECONDS", 0.1)
    answer = raw(scripted, f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{{".encode())
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_who_never_reads_is_cut_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "stall_seconds", 0.3)
    with running_server(lambda: scripted_service(max_context=30_000)) as server:
        server.wait_until(lambda: server.session.state == "ready")
        data = json.dumps(HELLO | {"stream": True, "max_tokens": 20_000, "logprobs": True, "top_logprobs": 20}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(server.address)
            deaf.sendall(head.encode() + data)
            server.wait_until(lambda: bool(server.session._streams))
            stream = next(iter(server.session._streams.values()))
            server.wait_until(lambda: bool(stream._pending))
            assert server.post(CHAT, HELLO).status_code == 200
            server.wait_until(lambda: not server.session._streams and not engine_of(server).has_work)
            # The request leaves the count when its task ends, shortly after its stream has closed.
            server.wait_until(lambda: server.app_server._traffic.open == 0)
            assert sum(map(len, stream._pending.values())) <= 20_000


def test_pages_of_other_origins_may_not_call_unless_named() -> None:
    page = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with running_server(scripted_service, ["key"], cors_origins=["https://a.example"]) as server:
        preflight = httpx.options(server.url + CHAT, headers=page)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, page["origin"])
        assert (
            httpx.get(f"{server.url}/v1/models", headers=page).headers["access-control-allow-origin"] == page["origin"]
        )
        other = httpx.options(server.url + CHAT, headers=page | {"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


def test_without_named_origins_there_is_no_cors(scripted: Server) -> None:
    page = {"origin": "https://a.example", "access-control-request-method": "POST"}
    for answer in (httpx.options(scripted.url + CHAT, headers=page), httpx.get(f"{scripted.url}/health", headers=page)):
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_choices_of_a_long_prompt_are_bounded() -> None:
    with running_server(lambda: scripted_service(max_context=50_000)) as server:
        server.wait_until(lambda: server.session.state == "ready")
        answer = server.post("/v1/completions", {"prompt": [5] * 40_000, "n": 128, "max_tokens": 1})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
