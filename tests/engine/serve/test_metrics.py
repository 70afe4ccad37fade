"""The metrics after traffic whose figures are known."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_fixtures import Server, running_server, scripted_service

from engine.config import EngineConfig
from engine.core.request import StepOutput
from engine.serve.meter import Histogram, Meter, Stopwatch
from engine.serve.opening import open_service

COMPLETIONS = "/v1/completions"
MESSAGES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATE = MESSAGES + "{% if add_generation_prompt %}assistant: {% endif %}"


def figures(server: Server) -> dict[str, float]:
    """Samples by name with labels."""
    text = httpx.get(f"{server.url}/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def gained(after: dict[str, float], before: dict[str, float], name: str) -> float:
    return after[name] - before.get(name, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    config = EngineConfig(num_blocks=40, max_running=4, device="cpu")
    with running_server(lambda: open_service("synthetic:tiny", "f32", config, "tiny")) as running:
        running.wait_until(lambda: running.session.state == "ready", 60)
        yield running


@given(st.lists(st.floats(0, 20), max_size=30))
def test_histogram_counts_what_is_at_most_each_bound(seconds: list[float]) -> None:
    histogram = Histogram((0.5, 1.0, 10.0))
    for value in seconds:
        histogram.observe(value)
    expected = [sum(value <= bound for value in seconds) for bound in (0.5, 1.0, 10.0, float("inf"))]
    assert [count for _, count in histogram.buckets()] == expected
    assert [bound for bound, _ in histogram.buckets()] == ["0.5", "1.0", "10.0", "+Inf"]
    assert histogram.sum == pytest.approx(sum(seconds))


def test_meter_times_first_and_later_tokens_per_choice() -> None:
    meter, watch = Meter(), Stopwatch(10.0)
    for index, tokens, now in ((0, 1, 10.2), (1, 1, 10.3), (0, 4, 11.2), (1, 0, 12.0), (1, 1, 12.3)):
        meter.note(StepOutput("r", token_ids=(1,) * tokens, index=index), watch, now)
    meter.note(StepOutput("r", finish_reason="stop"), watch, 13)
    assert (meter.first_token.buckets()[-1][1], meter.first_token.sum) == (1, pytest.approx(0.2))
    assert (meter.inter_token.buckets()[-1][1], meter.inter_token.sum) == (5, pytest.approx(1.0 + 2.0))
    assert meter.finished == {"stop": 1}


def test_known_traffic_gives_known_figures(server: Server) -> None:
    before = figures(server)
    prompt = list(range(70, 170))
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    for _ in range(2):
        assert server.post(COMPLETIONS, body).json()["usage"]["completion_tokens"] == 8
    assert server.post(COMPLETIONS, {"prompt": 5}).status_code == 400
    assert server.post("/v1/made/up", {}).status_code == 404
    after = figures(server)
    expected = {
        "sweq_prompt_tokens_total": 200,
        "sweq_generated_tokens_total": 16,
        "sweq_prefix_hit_tokens_total": 64,
        "sweq_prefix_hit_tokens_device_total": 64,
        "sweq_prefix_hit_tokens_host_total": 0,
        "sweq_time_to_first_token_seconds_count": 2,
        'sweq_time_to_first_token_seconds_bucket{le="+Inf"}': 2,
        "sweq_inter_token_seconds_count": 14,
        'sweq_finished_total{finish_reason="length"}': 2,
        f'sweq_requests_total{{route="{COMPLETIONS}",status="200"}}': 2,
        f'sweq_requests_total{{route="{COMPLETIONS}",status="400"}}': 1,
        'sweq_requests_total{route="none",status="404"}': 1,
    }
    assert {name: gained(after, before, name) for name in expected} == expected
    assert 0 < after["sweq_time_to_first_token_seconds_sum"] < 60
    assert (after["sweq_blocks_used"], after["sweq_blocks_total"]) == (0, 40)
    assert (after["sweq_state_slots_used"], after["sweq_running"], after["sweq_open_requests"]) == (0, 0, 0)
    assert after["sweq_state_slots_total"] >= 4


def test_a_client_that_leaves_is_counted_as_such(scripted: Server) -> None:
    before = figures(scripted)
    data = json.dumps({"prompt": "x", "max_tokens": 190, "stream": True}).encode()
    engine = scripted.session.service.engine  # type: ignore[union-attr]
    engine.gate.clear()  # type: ignore[attr-defined]
    with socket.create_connection(scripted.address) as client:
        head = (
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
        )
        client.sendall(head.encode() + b"\r\n\r\n" + data)
        scripted.wait_until(lambda: figures(scripted)["sweq_open_requests"] == 1)
    scripted.wait_until(lambda: figures(scripted)["sweq_open_requests"] == 0)
    engine.gate.set()  # type: ignore[attr-defined]
    after = figures(scripted)
    assert gained(after, before, f'sweq_requests_total{{route="{COMPLETIONS}",status="499"}}') == 1
    assert gained(after, before, 'sweq_finished_total{finish_reason="abort"}') == 1


def test_replayed_turns_are_counted() -> None:
    with running_server(lambda: scripted_service(template=TEMPLATE)) as server:
        server.wait_until(lambda: server.session.state == "ready")
        messages = [{"role": "user", "content": "hi"}]
        answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 7}).json()
        said = answer["choices"][0]["message"]
        history = [*messages, said, *messages, {"role": "assistant", "content": "never said"}, *messages]
        server.post("/v1/chat/completions", {"messages": history, "max_tokens": 1})
        after = figures(server)
    names = ("sweq_replayed_turns_total", "sweq_replayed_tokens_total", "sweq_tokenized_turns_total")
    assert [after[name] for name in names] == [1, 7, 1]
