"""`/tokenize` and `/detokenize`, in the shapes that vLLM gave them."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from engine.errors import RequestError
from engine.serve.chat import Dialogue
from engine.serve.described import ChatMessages, ChatTools
from engine.serve.fields import FieldLog
from engine.serve.service import Service
from engine.serve.tool_choice import plan_tools

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
}
"""Fields that would change the tokens and are not supported -> the values that ask for nothing."""


class TokenizeFields(BaseModel):
    """Body of `/tokenize`: `prompt`, or `messages` with their tools.

    `add_special_tokens` adds the begin and end tokens that the checkpoint asks for: by default to a prompt only,
    because a chat template writes its own.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    prompt: str | None = None
    messages: ChatMessages | None = None
    tools: ChatTools | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raise RequestError where the fields do not go together or are not supported."""
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("prompt: give either prompt or messages", param="prompt")
        for name, allowed in UNSUPPORTED.items():
            if (self.model_extra or {}).get(name) not in allowed:
                raise RequestError(f"{name} is not supported by this server", param=name)


class DetokenizeFields(BaseModel):
    """Body of `/detokenize`."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    tokens: list[int]


def build_router(service: Callable[[], Service]) -> APIRouter:
    """The routes, which work without the engine."""
    router = APIRouter()
    field_log = FieldLog()

    @router.post("/tokenize")
    async def tokenize(fields: TokenizeFields) -> dict[str, Any]:
        field_log.note(fields)
        fields.check()
        return await asyncio.to_thread(_tokenized, service(), fields)

    @router.post("/detokenize")
    async def detokenize(fields: DetokenizeFields) -> dict[str, Any]:
        field_log.note(fields)
        return await asyncio.to_thread(_detokenized, service(), fields)

    return router


def _tokenized(service: Service, fields: TokenizeFields) -> dict[str, Any]:
    tokens = _chat_ids(service, fields) if fields.prompt is None else _prompt_ids(service, fields, fields.prompt)
    strings = [service.tokenizer.decode([i], special=True) for i in tokens] if fields.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": service.max_context,
        "tokens": tokens,
        "token_strs": strings,
    }


def _prompt_ids(service: Service, fields: TokenizeFields, prompt: str) -> list[int]:
    affixes = fields.add_special_tokens is not False
    return service.tokenizer.encode(prompt, affixes=affixes, most=service.most_tokens)


def _chat_ids(service: Service, fields: TokenizeFields) -> list[int]:
    """What `/v1/chat/completions` would make of the same fields, remembered answers as they were generated."""
    plan = plan_tools(service, fields.tools, None, None)
    messages = fields.messages or []
    if fields.add_generation_prompt is not False and not fields.add_special_tokens:
        return Dialogue.render(service, messages, plan).prompt_ids
    text = service.chat_template().render(messages, plan.tools, fields.add_generation_prompt is not False)
    return service.tokenizer.encode(text, affixes=bool(fields.add_special_tokens), most=service.most_tokens)


def _detokenized(service: Service, fields: DetokenizeFields) -> dict[str, Any]:
    size = service.tokenizer.vocab_size
    if not all(0 <= token < size for token in fields.tokens):
        raise RequestError(f"tokens: ids must be between 0 and {size - 1}", param="tokens")
    return {"prompt": service.tokenizer.decode(fields.tokens, special=True)}
