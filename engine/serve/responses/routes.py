"""`/v1/responses`: OpenAI's API of items, whose conversations the server remembers for a while."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from engine.core.request import Grammar, Request
from engine.errors import RequestError
from engine.serve.answer import Answer
from engine.serve.chat import Dialogue
from engine.serve.described import MAX_MESSAGES, ResponseItems, ResponseTools
from engine.serve.engine_request import engine_request, sampling_params
from engine.serve.fields import MAX_SESSION_ID, FieldLog, GenerationFields
from engine.serve.openai import SessionHeader
from engine.serve.responses.format import ResponsesFormat
from engine.serve.responses.items_in import as_asked, read_items, read_tool_choice, read_tools, to_messages
from engine.serve.responses.store import Context, Item, ResponseStore, StoredResponse
from engine.serve.service import Service
from engine.serve.session import Session
from engine.serve.tool_choice import plan_tools

LOGPROBS = "message.output_text.logprobs"

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
    "top_logprobs": (None, 0),
}
"""Fields that would change the answer and are not supported -> the values that ask for nothing."""


def _input(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(each, dict) for each in value)):
        if len(value) > MAX_MESSAGES and not isinstance(value, str):
            raise ValueError(f"at most {MAX_MESSAGES} items")
        return value
    raise ValueError("must be a string or a list of items, which are objects")


def _tool_choice(value: Any) -> Any:
    if not isinstance(value, str | dict | None):
        raise ValueError("must be a string or an object")
    return value


class TextFormat(BaseModel):
    """`text.format`: the fields of `response_format` without its inner object."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    strict: bool | None = None
    definition: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    def grammar(self) -> Grammar | None:
        """What the text must be; None for any text. RequestError when the schema is missing."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_object", param="text.format")
        if self.definition is None:
            message = 'text.format.schema is missing; type "json_schema" needs it'
            raise RequestError(message, param="text.format.schema")
        return Grammar("json_schema", json.dumps(self.definition), param="text.format")


class TextFields(BaseModel):
    """`text`. Its other fields, such as `verbosity`, are hints for other models."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: TextFormat | None = None


class ResponsesFields(GenerationFields):
    """Body of `/v1/responses`."""

    prompt_field: ClassVar[str] = "input"

    input: Annotated[str | list[dict[str, Any]], BeforeValidator(_input, json_schema_input_type=str | ResponseItems)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: ResponseTools | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, BeforeValidator(_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=MAX_SESSION_ID)] | None = None
    user: str | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_output_tokens if self.max_output_tokens is not None else self.max_tokens

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    def check_supported(self) -> None:
        super().check_supported()
        for name, allowed in UNSUPPORTED.items():
            if self.extra_fields().get(name) not in allowed:
                raise RequestError(f"{name} is not supported by this server", param=name)
        if (self.n or 1) > 1:
            raise RequestError("n must be 1: a response has one answer", param="n")
        if LOGPROBS in (self.include or ()):
            raise RequestError(f"include: {LOGPROBS} is not supported; use /v1/chat/completions", param="include")

    def echo(self) -> dict[str, Any]:
        """What the response repeats of the request; what was left out, as it was understood."""
        form = self.text.format if self.text else None
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": self.reasoning,
            "store": self.is_stored,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

    def _grammar(self) -> Grammar | None:
        one, other = self.text.format.grammar() if self.text and self.text.format else None, super()._grammar()
        if one and other:
            raise RequestError("text.format: another field asks for a form already", param="text.format")
        return one or other


def build_router(session: Session, service: Callable[[], Service], store: ResponseStore | None = None) -> APIRouter:
    """The routes. Finished responses are kept in `store` (one of the default size when None)."""
    router = APIRouter(prefix="/v1/responses")
    field_log = FieldLog()
    responses = store or ResponseStore()

    @router.post("", response_model=None)
    async def create(fields: ResponsesFields, x_session_id: SessionHeader = None) -> Response:
        field_log.note(fields)
        session_id = x_session_id or fields.prompt_cache_key or None
        opened = await asyncio.to_thread(_open, service(), responses, fields, session_id)
        request, dialogue, context, ignored = opened
        field_log.note_tools(ignored)

        def keep(response: dict[str, Any], data: bytes) -> None:
            if fields.is_stored:
                output = response["output"]
                responses.keep(request.request_id, StoredResponse(data, context.extended(output)), output)

        form = ResponsesFormat(request.request_id, dialogue, fields.echo(), keep)
        return Answer(session, request, form, events=bool(fields.stream))

    @router.get("/{response_id}", response_model=None)
    async def retrieve(response_id: str, stream: str = "false") -> Response:
        if stream.lower() not in ("false", "0"):
            raise RequestError("stream: a kept response is given whole", param="stream")
        return Response(responses.get(response_id).body, media_type="application/json")

    @router.delete("/{response_id}")
    async def delete(response_id: str) -> dict[str, Any]:
        responses.delete(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    return router


def _open(
    service: Service, store: ResponseStore, fields: ResponsesFields, session_id: str | None
) -> tuple[Request, Dialogue, Context, Sequence[str]]:
    """The engine's request, its dialogue, the conversation with this input, and the types of tools left out."""
    fields.check_supported()
    before = Context()
    if fields.previous_response_id:
        before = store.get(fields.previous_response_id, "previous_response_id").context
    items: list[Item] = read_items(fields.input, lambda item_id, param: store.item(item_id, param))
    context = before.extended(items)
    tools, ignored = read_tools(fields.tools)
    try:
        plan = plan_tools(service, tools, read_tool_choice(fields.tool_choice), fields.parallel_tool_calls)
        dialogue = Dialogue.render(service, to_messages(fields.instructions, context.items), plan)
        params = plan.constrain(sampling_params(service, fields, len(dialogue.prompt_ids)))
        request = engine_request(service, fields, "resp_", dialogue.prompt_ids, params, session_id)
    except RequestError as error:
        raise as_asked(error, fields.tools) from error
    return request, dialogue, context, ignored
