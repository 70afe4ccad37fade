"""The Anthropic endpoints: `/v1/messages` and `/v1/messages/count_tokens`."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from engine.core.request import Grammar, Request
from engine.errors import RequestError
from engine.serve.answer import Answer
from engine.serve.anthropic.message_format import MessageFormat
from engine.serve.anthropic.prompt import as_asked, chat_messages, chat_tool_choice, chat_tools
from engine.serve.chat import Dialogue
from engine.serve.described import AnthropicMessages, AnthropicTools
from engine.serve.engine_request import engine_request, sampling_params
from engine.serve.errors import ANTHROPIC_ROUTE
from engine.serve.fields import FieldLog, GenerationFields, StopStrings
from engine.serve.openai import SessionHeader
from engine.serve.service import Service
from engine.serve.session import Session
from engine.serve.tool_choice import ToolPlan, plan_tools

REFUSED = {
    "thread": "send the whole conversation; what was sent before is in the cache",
    "compaction": "ask for a summary in a message",
    "mcp_servers": "call them in the client and offer their tools",
    "container": "run code in the client",
}
"""Fields that ask the server to do what it cannot -> what to do instead."""

THREADS_UNSUPPORTED = "thread_unsupported_request"
"""The code on which Anthropic's library sends the conversation again as a whole."""


class Metadata(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    user_id: str | None = None


def _text_or_blocks(value: Any) -> Any:
    if not isinstance(value, str | None) and not (isinstance(value, list) and all(isinstance(b, dict) for b in value)):
        raise ValueError("must be a string or a list of text blocks")
    return value


SystemText = str | list[dict[str, Any]] | None


class OutputFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["json_schema"]
    definition: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(BaseModel):
    """`effort` and what else there may be changes nothing for a model that does not think."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: OutputFormat | None = None


class CountFields(GenerationFields):
    """Body of `/v1/messages/count_tokens`, and what `/v1/messages` has of the prompt.

    `thinking` and `cache_control` are accepted without effect: the model answers at once, and every prompt is cached.
    """

    prompt_field: ClassVar[str] = "messages"

    messages: AnthropicMessages
    system: Annotated[SystemText, BeforeValidator(_text_or_blocks, json_schema_input_type=SystemText)] = None
    tools: AnthropicTools | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    output_config: OutputConfig | None = None

    def check_supported(self) -> None:
        super().check_supported()
        for name, instead in REFUSED.items():
            if self.extra_fields().get(name):
                code = THREADS_UNSUPPORTED if name == "thread" else None
                raise RequestError(f"{name} is not supported by this server: {instead}", param=name, code=code)


class MessageFields(CountFields):
    """Body of `/v1/messages`. Beside the API's own fields those of GenerationFields work, as `seed` and `min_p`."""

    max_tokens: Annotated[int, Field(ge=1)]
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stop: StopStrings = Field(default_factory=list, alias="stop_sequences")
    metadata: Metadata | None = None

    def _grammar(self) -> Grammar | None:
        form = self.output_config and self.output_config.format
        if not form:
            return super()._grammar()
        return Grammar("json_schema", json.dumps(form.definition), param="output_config.format")


@dataclass(frozen=True)
class Exchange:
    """A rendered conversation. `is_prefilled`: its last message is the answer's beginning, and not a turn before it."""

    dialogue: Dialogue
    is_prefilled: bool

    @classmethod
    def open(cls, service: Service, fields: CountFields) -> "Exchange":
        """Render the conversation; RequestError for what cannot be served as asked."""
        service.chat_template()
        fields.check_supported()
        tools = chat_tools(fields.tools)
        choice, parallel = chat_tool_choice(fields.tool_choice, tools)
        plan = plan_tools(service, tools, choice, parallel)
        turns = chat_messages(fields.system, fields.messages)
        if turns[-1]["role"] != "assistant":
            return cls(Dialogue.render(service, turns, plan), False)
        _check_beginning(turns[-1], plan, fields)
        dialogue = Dialogue.render(service, turns[:-1], plan)
        begun = service.tokenizer.encode(turns[-1]["content"], affixes=False)
        return cls(replace(dialogue, lead=begun), bool(begun))


def _check_beginning(turn: Mapping[str, Any], plan: ToolPlan, fields: CountFields) -> None:
    """Raise RequestError where the answer cannot go on from the conversation's last turn."""
    if "tool_calls" in turn:
        raise RequestError("messages: tool calls of the last message need their results", param="messages")
    if plan.is_forced:
        raise RequestError("tool_choice: the last message begins an answer, which leaves no call", param="tool_choice")
    if fields.output_config and fields.output_config.format:
        param = "output_config.format"
        raise RequestError(f"{param}: the last message begins the answer; only a whole one has a form", param=param)


def build_router(session: Session, service: Callable[[], Service]) -> APIRouter:
    """The routes. `service` is asked per request, because the server listens before the model is loaded."""
    router = APIRouter()
    field_log = FieldLog()

    @router.post(ANTHROPIC_ROUTE, response_model=None)
    async def messages(fields: MessageFields, x_session_id: SessionHeader = None) -> Response:
        # Rendering a long conversation takes time that other streams need on this thread.
        request, exchange = await asyncio.to_thread(_request, service(), fields, x_session_id)
        field_log.note(fields)
        form = MessageFormat(
            request.request_id,
            exchange.dialogue,
            is_kept=not exchange.is_prefilled,
            fills_context=request.params.max_tokens < fields.max_tokens,
        )
        return Answer(session, request, form, events=bool(fields.stream))

    @router.post(f"{ANTHROPIC_ROUTE}/count_tokens")
    async def count_tokens(fields: CountFields) -> dict[str, int]:
        exchange = await asyncio.to_thread(Exchange.open, service(), fields)
        field_log.note(fields)
        return {"input_tokens": len(exchange.dialogue.prompt_ids)}

    @router.head("/", include_in_schema=False)
    async def root() -> None:
        """Claude Code asks whether anybody is there."""

    return router


def _request(service: Service, fields: MessageFields, session_header: str | None) -> tuple[Request, Exchange]:
    exchange = Exchange.open(service, fields)
    dialogue = exchange.dialogue
    prompt = dialogue.prompt_ids
    if len(prompt) >= service.max_context:
        # Claude Code knows by these words that it has to compact the conversation.
        message = f"prompt is too long: {len(prompt)} tokens > {service.max_context - 1} maximum"
        raise RequestError(message, param="messages", code="context_length_exceeded")
    try:
        params = dialogue.plan.constrain(sampling_params(service, fields, len(prompt)))
        return engine_request(service, fields, "msg_", prompt, params, session_header), exchange
    except RequestError as error:
        raise as_asked(error) from error
