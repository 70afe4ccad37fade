"""`/v1/responses` called with the openai library."""

from typing import Any

import openai
from serve_fixtures import Server
from token_script import engine_of

PATH = "/v1/responses"
BASH = {"type": "object", "properties": {"command": {"type": "string"}, "n": {"type": "number"}}}
TOOLS: list[Any] = [
    {"type": "function", "name": "bash", "description": "run", "parameters": BASH, "strict": False},
    {"type": "function", "name": "edit.file", "parameters": None},
]


def strict(server: Server) -> openai.OpenAI:
    """A client that raises when an answer is not as the library's own types say."""
    url = f"{server.url}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60, _strict_response_validation=True)


def ask(server: Server, given: Any = "go", **options: Any) -> Any:
    return strict(server).responses.create(model="m", input=given, **({"tools": TOOLS} | options))


def prompt(server: Server) -> str:
    """The prompt of the latest request, with its special tokens."""
    assert server.session.service is not None
    return server.session.service.tokenizer.decode(engine_of(server).requests[-1].prompt_ids, special=True)
