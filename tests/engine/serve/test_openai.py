import concurrent.futures
import json
from typing import Any

import httpx
import openai
import pytest
from serve_fixtures import REPLY, Server, running_server, scripted_service

CHAT = "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def test_plain_and_streamed_answers_agree(scripted: Server) -> None:
    client = scripted.client()
    plain = client.chat.completions.create(model="scripted", messages=HELLO, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model="scripted", messages=HELLO, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert text.startswith(REPLY)
    assert plain.choices[0].finish_reason == "length"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_counts_prompt_completion_and_cached_tokens(scripted: Server) -> None:
    usage = scripted.client().chat.completions.create(model="scripted", messages=HELLO, max_tokens=5).usage
    assert usage is not None
    assert usage.prompt_tokens == len("user: hello\nassistant:")
    assert (usage.completion_tokens, usage.total_tokens) == (5, usage.prompt_tokens + 5)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 3


def test_usage_is_streamed_only_when_asked(scripted: Server) -> None:
    chunks = list(scripted.client().chat.completions.create(model="m", messages=HELLO, max_tokens=3, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_absent_max_tokens_is_what_remains_and_too_many_are_cut(scripted: Server) -> None:
    client = scripted.client()
    for extra in ({}, {"max_tokens": 32000}, {"max_completion_tokens": 10**6, "max_tokens": 1}):
        usage = client.chat.completions.create(model="m", messages=HELLO, **extra).usage  # type: ignore[call-overload]
        assert usage.total_tokens == 200


def test_completions_plain_streamed_text_and_ids(scripted: Server) -> None:
    client = scripted.client()
    plain = client.completions.create(model="m", prompt="ab", max_tokens=17, logprobs=1)
    stream = client.completions.create(model="m", prompt="ab", max_tokens=17, logprobs=1, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text == REPLY[:-2]
    assert chunks[-1].choices[0].finish_reason == "length"
    tokens = [t for chunk in chunks if chunk.choices[0].logprobs for t in chunk.choices[0].logprobs.tokens or []]
    assert plain.choices[0].logprobs is not None
    assert tokens == plain.choices[0].logprobs.tokens
    ids = scripted.session.service.tokenizer.encode("ab")  # type: ignore[union-attr]
    assert client.completions.create(model="m", prompt=ids, max_tokens=17).choices[0].text == REPLY[:-2]


def test_chat_logprobs_give_bytes_and_alternatives(scripted: Server) -> None:
    answer = scripted.client().chat.completions.create(
        model="m", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert [entry.bytes for entry in content] == [[byte] for byte in "hé".encode()]
    assert [len(entry.top_logprobs) for entry in content] == [2, 2, 2]
    assert content[0].logprob == -0.5


def test_models_are_listed(scripted: Server) -> None:
    client = scripted.client()
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.head(f"{scripted.url}/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": "x"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": "2"}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"guided_json": {}}, "guided_json"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "x"}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"7": 101}}, "logit_bias[7]"),
        ({"logit_bias": {"seven": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ],
)
def test_each_bad_field_is_a_400_that_names_it(scripted: Server, change: dict[str, Any], param: str) -> None:
    answer = scripted.post(CHAT, {"model": "m", "messages": HELLO, "max_tokens": 2} | change)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]


@pytest.mark.parametrize("prompt", [None, "", ["a", "b"], [[1], [2]], {"a": 1}, [1, "a"], [-1], [10**6], []])
def test_each_bad_prompt_is_a_400(scripted: Server, prompt: Any) -> None:
    answer = scripted.post("/v1/completions", {"model": "m", "prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_context_overflow_has_its_code(scripted: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        scripted.client().chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 300}])
    assert caught.value.code == "context_length_exceeded"
    assert "200" in caught.value.message


def test_bad_json_lone_surrogates_and_unknown_paths_keep_the_error_shape(scripted: Server) -> None:
    headers = {"content-type": "application/json"}
    broken = httpx.post(f"{scripted.url}{CHAT}", content=b'{"a":', headers=headers)
    assert (broken.status_code, "not valid JSON" in broken.json()["error"]["message"]) == (400, True)
    surrogate = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    assert httpx.post(f"{scripted.url}{CHAT}", content=surrogate, headers=headers).status_code == 400
    unknown = scripted.post("/v1/nothing", {})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")


def test_neutral_and_unknown_fields_are_accepted_and_logged_once(
    scripted: Server, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "frequency_penalty": 0, "tools": [], "wonder": 1, "stop": None}
    answers = [scripted.post(CHAT, body | {"user": "me"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [record.getMessage() for record in caplog.records if "unknown request fields" in record.getMessage()] == [
        "ignoring unknown request fields: 'user', 'wonder'"
    ]


def test_no_template_is_an_error_that_names_the_model() -> None:
    with running_server(lambda: scripted_service(template=None)) as server:
        server.wait_until(lambda: server.session.state == "ready")
        answer = server.post(CHAT, {"messages": HELLO})
        assert answer.status_code == 400
        assert "scripted.gguf has no chat template" in answer.json()["error"]["message"]
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200


def test_concurrent_streams_are_whole(scripted: Server) -> None:
    def run(length: int) -> str:
        with httpx.stream(
            "POST", scripted.url + CHAT, json={"messages": HELLO, "max_tokens": length, "stream": True}, timeout=60
        ) as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])

    lengths = list(range(20, 100, 5))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, lengths))
    assert together == [run(length) for length in lengths]
