import socket

import httpx
import openai
import pytest
from serve_fixtures import Server, running_server, scripted_service

from engine.errors import UserError
from engine.serve.app import bind


def test_api_keys_guard_all_but_health() -> None:
    with running_server(scripted_service, api_keys=["first", "sécond"]) as server:
        server.wait_until(lambda: server.session.state == "ready")
        for key in ("wrong", "firs", "first2"):
            answer = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        assert server.client("first").models.list().data
        open_paths = ("/health", "/ready")
        assert [httpx.get(f"{server.url}{path}").status_code for path in open_paths] == [200, 200]
        guarded = ("/metrics", "/version", "/openapi.json", "/v1/nothing", "/nothing")
        assert [httpx.get(f"{server.url}{path}").status_code for path in guarded] == [401] * 5
        assert httpx.get(f"{server.url}/metrics", headers={"authorization": "bearer first"}).status_code == 200
        assert httpx.get(f"{server.url}/metrics", headers={"x-api-key": "first"}).status_code == 200


def test_metrics_are_prometheus_text(scripted: Server) -> None:
    page = httpx.get(f"{scripted.url}/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert "sweq_ready 1.0" in page.text
    assert "sweq_running 0.0" in page.text
    assert "sweq_prefix_hit_tokens_total 7.0" in page.text


def test_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} on 127\.0\.0\.1 is taken: choose another with --port$"):
            bind("127.0.0.1", port)
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1 port 99999"):
        bind("127.0.0.1", 99999)
    with pytest.raises(UserError, match="cannot listen on no-such-host"):
        bind("no-such-host.invalid", 8000)
