"""Requests that schemathesis makes of our own OpenAPI document, against a real engine."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serve_fixtures import Server, running_server, scripted_service

from engine.config import EngineConfig
from engine.serve.app import build_app
from engine.serve.opening import open_service
from engine.serve.service import Service
from engine.serve.session import Session
from engine.text.chat import ChatTemplate

DOCUMENT = build_app(Session(scripted_service)).openapi()
OPERATIONS = {
    f"{operation.method.upper()} {operation.path}": operation
    for operation in (found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
}
EXAMPLES = 8
FIELD_EXAMPLES = 20
"""For each operation: the whole takes less than half a minute on two cores."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

JSON_TYPE = {"content-type": "application/json"}
TEMPLATE = Path(__file__).parents[1] / "templates" / "qwen3_coder.jinja"
REQUIRED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
    "input": "hi",
    "tokens": [1],
}


@pytest.fixture(scope="module")
def tiny() -> Iterator[Server]:
    config = EngineConfig(max_context=2048, num_blocks=300, max_running=16, device="cpu")

    def open_with_tools() -> Service:
        service = open_service("synthetic:tiny", "f32", config, "tiny")
        return replace(service, template=ChatTemplate(TEMPLATE.read_text(), service.tokenizer.special_tokens))

    with running_server(open_with_tools) as server:
        server.wait_until(lambda: server.session.state == "ready", 60)
        assert server.session.service is not None
        assert server.session.service.tool_syntax().format == "qwen3_coder"
        yield server
        server.wait_until(lambda: not server.session.stats["running"] and not server.session.stats["waiting"])
        assert server.session.state == "ready"
        assert (server.session.stats["blocks_used"], server.session.stats["state_slots_used"]) == (0, 0)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "{" in name or name.startswith("POST")])
def test_no_request_is_answered_with_a_5xx(tiny: Server, name: str) -> None:
    limits = settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )

    @limits
    @given(case=OPERATIONS[name].as_strategy())
    def run(case: Any) -> None:
        shorten(case.body)
        check(case.call(base_url=tiny.url, timeout=60))

    run()


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.body])
def test_each_field_with_any_json_is_taken_or_refused(tiny: Server, name: str) -> None:
    path = name.partition(" ")[2]
    required, fields = body_fields(path)

    @settings(max_examples=FIELD_EXAMPLES, derandomize=True, deadline=None, database=None)
    @given(field=st.sampled_from(fields), value=JSON)
    def run(field: str, value: Any) -> None:
        body = required | {field: value}
        shorten(body)
        check(httpx.post(f"{tiny.url}{path}", content=json.dumps(body), headers=JSON_TYPE, timeout=60))

    run()


def body_fields(path: str) -> tuple[dict[str, Any], list[str]]:
    """Values of the required fields of a route's body, and the names of all fields."""
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    model = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return {name: REQUIRED[name] for name in model.get("required", ()) if name in REQUIRED}, sorted(model["properties"])


def shorten(body: Any) -> None:
    """Let no answer be long: that is not what is tested."""
    if not isinstance(body, dict):
        return
    body.setdefault("max_tokens", 4)
    for name, most in (("n", 3), ("max_tokens", 4), ("max_completion_tokens", 4), ("max_output_tokens", 4)):
        if type(body.get(name)) is int:
            body[name] = min(body[name], most)


def check(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert isinstance(answer.json()["error"]["message"], str)
