"""`EndpointModel` against a real HTTP server on this machine that plays a script."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.agent.model import SESSION_HEADER, ContextExceeded, EndpointModel, RequestTimeoutError, ToolCall, Usage
from harness.config import SamplingConfig
from harness.errors import EndpointError

HELLO = [{"role": "user", "content": "hello é"}]


def completion(message, finish_reason="stop", usage=None):
    counted = usage or {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return 200, {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                 "usage": counted}  # fmt: skip


def failure(status, message, **fields):
    return status, {"error": {"message": message, **fields}}


class Server:
    """Answers POSTs from `script` in order, the last one for ever; an answer may be a function of the request body."""

    def __init__(self):
        self.script, self.requests, self.headers, self.retry_after, self.paths = [], [], [], None, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
                outer.paths.append(self.path)
                outer.requests.append(body)
                outer.headers.append(self.headers)
                answer = outer.script[min(len(outer.requests), len(outer.script)) - 1]
                status, content = answer(body) if callable(answer) else answer
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if outer.retry_after and status == 429:
                    self.send_header("Retry-After", outer.retry_after)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server():
    served = Server()
    yield served
    served.close()


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def connect(server, pauses):
    def make(*, url=None, timeout=10.0, api_key="key", extra=None, ends_sessions=False, **sampling):
        settings = SamplingConfig(**{"max_tokens": 1000, **sampling})
        return EndpointModel(
            url or server.url, api_key, "served", settings, timeout, 8192, extra, sleep=pauses.append,
            ends_sessions=ends_sessions,
        )  # fmt: skip

    return make


def test_request_and_answer_on_the_wire(server, connect):
    usage = {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57,
             "prompt_tokens_details": {"cached_tokens": 48}}  # fmt: skip
    server.script = [completion({"content": "hi", "refusal": None, "audio": None}, usage=usage)]
    model = connect(temperature=0.7, top_p=0.95, top_k=40, extra={"session_id": "s"})
    reply = model.complete(HELLO, [{"type": "function", "function": {"name": "bash"}}], seed=5, max_tokens=77)
    assert server.requests == [
        {
            "model": "served", "messages": HELLO, "temperature": 0.7, "top_p": 0.95, "top_k": 40, "seed": 5,
            "max_tokens": 77, "session_id": "s", "tools": [{"type": "function", "function": {"name": "bash"}}],
        }
    ]  # fmt: skip
    assert server.headers[0]["Authorization"] == "Bearer key"
    assert (reply.text, reply.finish_reason, reply.max_tokens) == ("hi", "stop", 77)
    assert reply.usage == Usage(50, 7, 48)
    assert reply.raw_message == {"role": "assistant", "content": "hi"}
    assert reply.seconds > 0


def test_unset_sampling_is_not_sent(server, connect):
    server.script = [completion({"content": "hi"})]
    connect().complete(HELLO, None, seed=1)
    assert set(server.requests[0]) == {"model", "messages", "temperature", "seed", "max_tokens"}


def test_tool_calls_come_through_even_ill_formed(server, connect):
    calls = [
        {"id": "a", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls'}},
        {"id": "", "type": "function", "function": {"name": "submit", "arguments": ""}},
    ]
    server.script = [completion({"content": None, "tool_calls": calls, "reasoning_content": "hm"}, "tool_calls")]
    reply = connect().complete(HELLO, None, seed=1)
    assert reply.text == ""
    assert reply.tool_calls == (ToolCall("a", "bash", '{"command": "ls'), ToolCall("call_1", "submit", ""))
    assert [call["id"] for call in reply.raw_message["tool_calls"]] == ["a", "call_1"]
    assert reply.raw_message["reasoning_content"] == "hm"


@pytest.mark.parametrize("ours", [True, False])
def test_a_conversation_is_named_and_our_engine_hears_of_its_end(server, connect, ours):
    server.script = [lambda body: completion({"content": "hi"}) if body else (200, {})]
    model = connect(ends_sessions=ours)
    with model.session() as conversation:
        conversation.complete(HELLO, None, seed=1)
        conversation.complete(HELLO, None, seed=2)
    names = {headers[SESSION_HEADER] for headers in server.headers[:2]}
    assert len(names) == 1
    assert server.paths[2:] == ([f"/v1/sessions/{names.pop()}/end"] if ours else [])
    model.complete(HELLO, None, seed=3)
    assert server.headers[-1][SESSION_HEADER] is None


def test_an_end_that_nobody_hears_is_no_error(connect):
    with connect(url="http://127.0.0.1:9/v1", ends_sessions=True).session():
        pass


def test_lone_surrogates_can_be_sent_back(server, connect):
    server.script = [completion({"content": "bad \ud800 text"})]
    model = connect()
    reply = model.complete(HELLO, None, seed=1)
    model.complete([*HELLO, reply.raw_message], None, seed=1)
    assert server.requests[1]["messages"][1]["content"] == "bad ? text"


def test_rate_limit_then_success_waits_as_told(server, connect, pauses):
    server.script = [failure(429, "slow down"), failure(503, "loading"), completion({"content": "ok"})]
    server.retry_after = "7"
    assert connect().complete(HELLO, None, seed=1).text == "ok"
    assert pauses == [7.0, 2.0]


def test_lasting_failure_ends_after_six_attempts(server, connect, pauses):
    server.script = [failure(500, "CUDA error")]
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1.*CUDA error.*after 6 attempts"):
        connect().complete(HELLO, None, seed=1)
    assert len(server.requests) == 6
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert all(pause <= 10.0 for pause in pauses)


def test_nobody_listening_is_an_endpoint_error(connect, pauses):
    with pytest.raises(EndpointError, match="Connection error"):
        connect(url="http://127.0.0.1:9/v1").complete(HELLO, None, seed=1)
    assert len(pauses) == 5


@pytest.mark.parametrize(
    ("status", "message"), [(401, "bad key"), (404, "no such model: context window"), (400, "bad tool schema")]
)
def test_refusals_are_not_repeated(server, connect, status, message):
    server.script = [failure(status, message)]
    with pytest.raises(EndpointError, match=message):
        connect().complete(HELLO, None, seed=1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "too long", "code": "context_length_exceeded"}),
        (400, {"message": "This model's maximum context length is 8192 tokens, however you requested 9000 tokens"}),
        (400, {"message": "The input (9000 tokens) is longer than the model's context length (8192 tokens)."}),
        (400, {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"}),
        (500, {"message": "Context size has been exceeded."}),
    ],
)
def test_overflow_is_a_limit_of_its_own(server, connect, status, error):
    server.script = [(status, {"error": error})]
    with pytest.raises(ContextExceeded):
        connect().complete(HELLO, None, seed=1)
    assert [request["max_tokens"] for request in server.requests] == [1000, 250, 64]


def test_answer_room_shrinks_until_it_fits(server, connect):
    refused = failure(400, "maximum context length is 8192 tokens")
    server.script = [lambda body: completion({"content": "ok"}) if body["max_tokens"] < 300 else refused]
    assert connect().complete(HELLO, None, seed=1).max_tokens == 250


def test_hanging_server_ends_in_time_and_is_not_asked_again(server, connect):
    server.script = [lambda body: (time.sleep(1.0), completion({"content": "late"}))[1]]
    start = time.monotonic()
    with pytest.raises(RequestTimeoutError, match="no answer within"):
        connect().complete(HELLO, None, seed=1, timeout=0.2)
    assert time.monotonic() - start < 0.9
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, {"object": "chat.completion", "choices": []}), "no chat completion with a choice"),
        ((200, {**completion({"content": "x"})[1], "usage": None}), "no `usage`"),
        ((200, b"<html>proxy</html>"), "the answer is no JSON"),
    ],
)
def test_unusable_answers_are_named(server, connect, answer, problem):
    server.script = [answer]
    with pytest.raises(EndpointError, match=problem):
        connect().complete(HELLO, None, seed=1)
