"""Requests to the Anthropic API through its own client."""

from typing import Any

import anthropic
from serve_fixtures import Server
from token_script import engine_of

MESSAGES = "/v1/messages"
BASH = {"type": "object", "properties": {"command": {"type": "string"}, "n": {"type": "number"}}}
TOOLS: list[Any] = [
    {"name": "bash", "description": "run", "input_schema": BASH},
    {"name": "edit", "input_schema": {"type": "object"}},
]
HELLO: list[Any] = [{"role": "user", "content": "go"}]


def client_of(server: Server, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=60)


def ask(server: Server, messages: list[Any] = HELLO, **options: Any) -> Any:
    return client_of(server).messages.create(model="m", messages=messages, **({"max_tokens": 500} | options))


def ask_streamed(server: Server, messages: list[Any] = HELLO, **options: Any) -> Any:
    options = {"max_tokens": 500} | options
    with client_of(server).messages.stream(model="m", messages=messages, **options) as stream:
        return stream.get_final_message()


def blocks_of(message: Any) -> list[Any]:
    return [block.text if block.type == "text" else (block.name, block.input) for block in message.content]


def prompt_of(server: Server) -> str:
    assert server.session.service is not None
    return server.session.service.tokenizer.decode(engine_of(server).requests[-1].prompt_ids, special=True)
