"""`sweq doctor`: its findings on the clock, and on servers with and without what agents need."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.__main__ import app
from harness.run import doctor
from harness.run.doctor import Check, check_all
from harness.run.doctor_endpoint import check_endpoint, check_servers

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
CALL = {"id": "a", "type": "function", "function": {"name": "report", "arguments": '{"number": 7}'}}


class Server:
    """Serves `models`, and answers chat completions by `answer`; refuses other keys than `key`."""

    def __init__(self) -> None:
        self.models: Any = {"data": [{"id": "m", "max_model_len": 4096}]}
        self.answer: Answer = lambda body: complete(body)
        self.key: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                found = self.path == "/v1/models"
                if outer.key and self.headers.get("Authorization") != f"Bearer {outer.key}":
                    self.reply(401, {})
                else:
                    self.reply(200 if found else 404, outer.models if found else {})

            def do_POST(self) -> None:
                self.reply(*outer.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

            def reply(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


def complete(body: dict[str, Any], call: Any = CALL, cached: int | None = 4000, usage: bool = True) -> tuple[int, Any]:
    message = {"role": "assistant", "content": "x", **({"tool_calls": [call]} if body.get("tool_choice") else {})}
    counted: dict[str, Any] = {"prompt_tokens": 5000, "completion_tokens": 9}
    if cached is not None:
        counted["prompt_tokens_details"] = {"cached_tokens": cached}
    return 200, {"choices": [{"message": message}], **({"usage": counted} if usage else {})}


def refuse(status: int, message: str, when: Callable[[dict[str, Any]], bool]) -> Answer:
    return lambda body: (status, {"error": {"message": message}}) if when(body) else complete(body)


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


def ask(server: Server, wanted: str | None = None) -> dict[str, Check]:
    return {check.name: check for check in check_endpoint(server.url, server.key, wanted, None)}


def test_a_server_that_fits_passes_every_check(server: Server) -> None:
    checks = ask(server)
    assert list(checks) == ["endpoint", "model", "context", "template", "tools", "cache"]
    assert all(check.passed for check in checks.values())
    assert checks["context"].finding == "4096 tokens"
    assert checks["tools"].finding == "a well-formed call, made by itself (5000 + 9 tokens)"
    assert checks["cache"].finding.startswith("4000 of 5000 prompt tokens")


def calling(arguments: str) -> Answer:
    return lambda body: complete(body, call={"function": {"name": "report", "arguments": arguments}})


def by_itself(body: dict[str, Any]) -> bool:
    return body.get("tool_choice") == "auto"


def has_tools(body: dict[str, Any]) -> bool:
    return "tools" in body


@pytest.mark.parametrize(
    ("answer", "name", "line"),
    [
        (refuse(500, "no template", lambda body: True), "template", "FAIL template: system and user messages: HTTP"),
        (lambda body: complete(body, usage=False), "template", "FAIL template: answers have no usage figures"),
        (refuse(400, "no tools", has_tools), "template", "note template: takes no tool messages: HTTP 400"),
        (refuse(400, "auto", by_itself), "tools", "ok   tools: a well-formed call, made by force"),
        (calling("{"), "tools", "note tools: by itself: a malformed call"),
        (calling('{"number": "7"}'), "tools", "note tools: by itself: a call with"),
        (lambda body: complete(body, cached=None), "cache", "note cache: no figures of cached prompt tokens; start"),
        (lambda body: complete(body, cached=0), "cache", "note cache: 0 of 5000"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(server: Server, answer: Answer, name: str, line: str) -> None:
    server.answer = answer
    check = ask(server)[name]
    assert check.describe().startswith(line)
    assert check.passed or check.remedy


def test_a_server_without_a_context_or_with_several_models(server: Server) -> None:
    server.models = {"data": [{"id": "a"}, {"id": "b"}]}
    assert ask(server)["model"].describe() == "FAIL model: a, b; set endpoint.served_model to the one to use"
    assert ask(server, "c")["model"].finding == "'c' is not served, but a, b"
    assert not ask(server, "b")["context"].passed


def test_the_key_is_sent_and_missed(server: Server) -> None:
    server.key = "secret"
    assert ask(server)["endpoint"].passed
    refused = next(iter(check_endpoint(server.url, None, None, None)))
    assert refused.describe() == f"FAIL endpoint: {server.url}/models answers HTTP 401; give --api-key"


def test_levels_of_a_configuration_are_asked_one_by_one(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\ndataset: starter\nendpoint: {kind: url}\nlevels:\n"
        f"  - {{name: here, base_url: '{server.url}'}}\n  - {{name: away, base_url: 'http://127.0.0.1:9/v1'}}\n"
    )
    checks = {check.name: check.passed for check in check_servers(None, None, path)}
    assert checks["here: cache"]
    assert checks["away: endpoint"] is False


def test_the_command_ends_with_1_where_a_needed_thing_fails(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_all", lambda: iter([Check("git", True, "there")]))
    run = CliRunner().invoke
    assert run(app, ["doctor", "--base-url", server.url]).exit_code == 0
    result = run(app, ["doctor", "--base-url", "http://127.0.0.1:9/v1"])
    assert result.exit_code == 1
    assert "FAIL endpoint: http://127.0.0.1:9/v1/models cannot be reached" in result.output


@pytest.mark.parametrize(
    ("skew", "line"),
    [(0.0, "ok   clock: within"), (3600.0, "FAIL clock: 3600 s off"), (-2e9, "FAIL clock: says")],
)
def test_a_clock_that_is_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float, line: str) -> None:
    monkeypatch.setattr(doctor, "_ask_docker_time", lambda: None)
    monkeypatch.setattr(doctor.time, "time", lambda real=time.time: real() + skew)
    lines = [check.describe() for check in check_all(tmp_path)]
    assert any(found.startswith(line) for found in lines)
    assert os.listdir(tmp_path) == []
