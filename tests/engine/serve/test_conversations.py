"""Conversations over HTTP: who belongs to which, and the end of one."""

from typing import Any

import httpx
from serve_fixtures import TEMPLATE, Server, running_server

from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.serve.service import Service
from engine.text.chat import ChatTemplate
from engine.weights.loader import load

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    TEXT: {"prompt": "hello", "max_tokens": 2},
}


def test_body_and_header_name_the_conversation(scripted: Server) -> None:
    engine: Any = scripted.session.service.engine  # type: ignore[union-attr]
    for path, body in BODIES.items():
        engine.sessions.clear()
        for fields, headers in (({}, {}), ({"session_id": "b"}, {"x-session-id": "h"}), ({}, {"x-session-id": "h"})):
            assert scripted.post(path, body | fields, headers=headers).status_code == 200
        assert engine.sessions == [None, "b", "h"]


def test_ending_a_conversation_reaches_the_engine(scripted: Server) -> None:
    engine: Any = scripted.session.service.engine  # type: ignore[union-attr]
    answer = scripted.post("/v1/sessions/task-7/end", None)
    assert answer.json() == {"id": "task-7", "object": "session", "ended": True}
    scripted.wait_until(lambda: engine.ended == ["task-7"])


def test_a_wrong_name_is_refused(scripted: Server) -> None:
    for value in ("", "x" * 257, 7):
        answer = scripted.post(CHAT, BODIES[CHAT] | {"session_id": value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "session_id")


def tiny_service() -> Service:
    checkpoint = load("synthetic:tiny", "f32", "cpu")
    engine = Engine(checkpoint, EngineConfig(max_context=1024, max_running=2, deterministic=True))
    return Service(engine, checkpoint.tokenizer, ChatTemplate(TEMPLATE, {}), "tiny", "tiny", 1024, checkpoint.identity)


def test_the_next_turn_is_cached_until_the_conversation_ends() -> None:
    with running_server(tiny_service) as server:
        server.wait_until(lambda: server.session.state == "ready", 60)
        body = {"prompt": [7] * 300, "max_tokens": 2, "session_id": "one"}
        cached = []
        for end in (False, True, False):
            usage = server.post(TEXT, body).json()["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
            if end:
                server.post("/v1/sessions/one/end", None)
        assert cached == [0, 256, 0]
        metrics = {
            line.split()[0]: float(line.split()[1])
            for line in httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
            if line.startswith("sweq_")
        }
        assert metrics["sweq_prefix_hit_tokens_device_total"] == 256
        assert metrics["sweq_snapshots_device"] == 1
        assert metrics["sweq_state_slots_total"] == 3
