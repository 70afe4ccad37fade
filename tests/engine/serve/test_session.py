import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_fixtures import ScriptedEngine, Server, running_server, scripted_service

from engine.core.request import Request, SamplingParams, StepOutput
from engine.errors import CheckpointError
from engine.serve.service import Service
from engine.serve.session import Session, merge

CHAT = "/v1/chat/completions"


def body(text: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 20, **more}


def request(service: Service, name: str, text: str = "hi", max_tokens: int = 10) -> Request:
    return Request(name, tuple(service.tokenizer.encode(text)), SamplingParams(max_tokens=max_tokens))


def in_session(use: Callable[[Session, Service], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        service = scripted_service()
        session = Session(lambda: service)
        session.start()
        while session.state == "loading":
            await asyncio.sleep(0.001)
        try:
            await use(session, service)
        finally:
            await session.close()
        assert session.state in ("closed", "failed")

    asyncio.run(asyncio.wait_for(run(), 30))


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 5)), min_size=1, max_size=6))
def test_merged_outputs_hold_everything_in_order(parts: list[tuple[str, int]]) -> None:
    outputs = [StepOutput("r", token_ids=(number,), text=text, prompt_tokens=2) for text, number in parts]
    merged = merge([*outputs, StepOutput("r", finish_reason="stop")])
    assert merged.text == "".join(text for text, _ in parts)
    assert merged.token_ids == tuple(number for _, number in parts)
    assert (merged.finish_reason, merged.prompt_tokens) == ("stop", 2)


def test_slow_reader_holds_nobody_up_and_misses_nothing() -> None:
    async def use(session: Session, service: Service) -> None:
        slow = session.submit(request(service, "slow", max_tokens=50))
        fast = session.submit(request(service, "fast", max_tokens=50))
        quick = [output async for output in fast]
        assert len(slow._pending[0]) == 50
        late = [output async for output in slow]
        assert len(late) == 1
        assert late[0].text == "".join(output.text for output in quick)
        assert late[0].token_ids == tuple(i for output in quick for i in output.token_ids)

    in_session(use)


def test_close_aborts_and_wakes_the_reader() -> None:
    async def use(session: Session, service: Service) -> None:
        assert isinstance(service.engine, ScriptedEngine)
        service.engine.gate.clear()
        with session.submit(request(service, "a", max_tokens=1000)) as stream:
            reader = asyncio.create_task(anext(stream, None))
            await asyncio.sleep(0.01)
            stream.close()
            assert await reader is None
        service.engine.gate.set()
        while session.stats["running"]:
            await asyncio.sleep(0.001)

    in_session(use)


def test_rejected_request_ends_alone() -> None:
    async def use(session: Session, service: Service) -> None:
        refused = session.submit(request(service, "a", "refuse"))
        outputs = [output async for output in refused]
        assert [(o.finish_reason, o.error) for o in outputs] == [("error", "the prompt does not fit the cache")]
        assert refused.rejection is not None
        assert [o async for o in session.submit(request(service, "b"))][-1].finish_reason == "length"

    in_session(use)


def test_failed_engine_ends_every_request_with_the_reason() -> None:
    async def use(session: Session, service: Service) -> None:
        streams = [session.submit(request(service, f"r{i}", "explode" if i else "hi", 500)) for i in range(3)]
        for stream in streams:
            last = [output async for output in stream][-1]
            assert (last.finish_reason, last.error) == ("error", "the engine failed: boom")
        later = [output async for output in session.submit(request(service, "late"))]
        assert [output.error for output in later] == ["the engine is failed"]

    in_session(use)


def test_closing_ends_what_runs() -> None:
    async def use(session: Session, service: Service) -> None:
        stream = session.submit(request(service, "a", max_tokens=10**6))
        await anext(stream)
        await session.close()
        last = [output async for output in stream][-1]
        assert (last.finish_reason, last.error) == ("error", "the server is shutting down")

    in_session(use)


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_request(scripted: Server, stream: bool) -> None:
    service = scripted.session.service
    assert service is not None
    engine = service.engine
    assert isinstance(engine, ScriptedEngine)
    engine.gate.clear()
    before = engine.steps
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(scripted.url + CHAT, json=body("x", stream=stream), timeout=0.3)
        scripted.wait_until(lambda: not scripted.session._streams)
    finally:
        engine.gate.set()
    scripted.wait_until(lambda: engine.steps > before and not engine.has_work)
    assert engine.steps == before + 1


def test_http_errors_tell_refused_from_failed() -> None:
    with running_server(scripted_service) as server:
        server.wait_until(lambda: server.session.state == "ready")
        refused = server.post(CHAT, body("refuse"))
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "the prompt does not fit the cache")
        failed = server.post(CHAT, body("explode", stream=True))
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        assert server.post(CHAT, body("hi")).status_code == 503
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed", "error": "boom"})


def test_health_while_loading_and_after() -> None:
    loaded = threading.Event()

    def slowly() -> Service:
        loaded.wait(20)
        return scripted_service()

    with running_server(slowly) as server:
        assert httpx.get(f"{server.url}/health").json()["status"] == "loading"
        assert server.post(CHAT, body("hi")).status_code == 503
        assert httpx.get(f"{server.url}/v1/models").status_code == 503
        loaded.set()
        server.wait_until(lambda: server.session.state == "ready")
        assert (httpx.get(f"{server.url}/health").json()) == {"status": "ok"}
        assert httpx.get(f"{server.url}/version").json()["engine"] == "sweq-engine"


def test_failed_load_is_told() -> None:
    def broken() -> Service:
        raise CheckpointError("x.gguf: truncated")

    with running_server(broken) as server:
        server.wait_until(lambda: server.session.state == "failed")
        assert httpx.get(f"{server.url}/health").json() == {"status": "failed", "error": "x.gguf: truncated"}


def test_drain_ends_with_an_error_the_client_can_read() -> None:
    with running_server(scripted_service, drain_seconds=0.2) as server:
        server.wait_until(lambda: server.session.state == "ready")
        service = server.session.service
        assert service is not None
        assert isinstance(service.engine, ScriptedEngine)
        engine = service.engine
        engine.gate.clear()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answer = pool.submit(server.post, CHAT, body("x"))
            server.wait_until(lambda: bool(server.session._streams))
            server.app_server.should_exit = True
            message = answer.result()
            engine.gate.set()
    assert (message.status_code, message.json()["error"]["message"]) == (500, "the server is shutting down")
