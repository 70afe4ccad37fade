"""The OpenAI endpoints: `/v1/chat/completions`, `/v1/completions`, `/v1/models`."""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response

from engine.core.request import Request
from engine.errors import MissingError, RequestError
from engine.serve.answer import Answer
from engine.serve.chat import ChatFormat, Dialogue
from engine.serve.completion import CompletionFormat
from engine.serve.engine_request import engine_request, sampling_params
from engine.serve.fields import MAX_SESSION_ID, ChatFields, CompletionFields, FieldLog, GenerationFields
from engine.serve.service import Service
from engine.serve.session import Session

SessionHeader = Annotated[str | None, Header(min_length=1, max_length=MAX_SESSION_ID)]
"""`x-session-id`, for clients that cannot add a field to the body; the body's `session_id` comes first."""


def build_router(session: Session, service: Callable[[], Service]) -> APIRouter:
    """The routes. `service` is asked per request, because the server listens before the model is loaded."""
    router = APIRouter(prefix="/v1")
    field_log = FieldLog()
    started = int(time.time())

    @router.post("/chat/completions", response_model=None)
    async def chat(fields: ChatFields, x_session_id: SessionHeader = None) -> Response:
        field_log.note(fields)
        # Rendering a long conversation and compiling a grammar take time that other streams need on this thread.
        request, dialogue = await asyncio.to_thread(_chat_request, service(), fields, x_session_id)
        form = ChatFormat(request.request_id, dialogue, **_options(request, fields))
        return Answer(session, request, form, events=bool(fields.stream))

    @router.post("/completions", response_model=None)
    async def completions(fields: CompletionFields, x_session_id: SessionHeader = None) -> Response:
        field_log.note(fields)
        request = await asyncio.to_thread(_completion_request, service(), fields, x_session_id)
        about = request.request_id, service().name, service().tokenizer
        echo = request.prompt_ids if fields.echoes_prompt else ()
        form = CompletionFormat(*about, echo=echo, **_options(request, fields))
        return Answer(session, request, form, events=bool(fields.stream))

    @router.post("/sessions/{session_id}/end")
    async def end_session(session_id: str) -> dict[str, Any]:
        service()
        session.end_conversation(session_id)
        return {"id": session_id, "object": "session", "ended": True}

    @router.head("/models", include_in_schema=False)
    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_card(service(), started)]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service().name:
            message = f"the model {name!r} does not exist; this server has {service().name!r}"
            raise MissingError(message, param="model", code="model_not_found")
        return _model_card(service(), started)

    return router


def _chat_request(service: Service, fields: ChatFields, session_header: str | None) -> tuple[Request, Dialogue]:
    dialogue = Dialogue.open(service, fields)
    params = sampling_params(service, fields, len(dialogue.prompt_ids))
    return engine_request(
        service, fields, "chatcmpl-", dialogue.prompt_ids, dialogue.plan.constrain(params), session_header
    ), dialogue


def _completion_request(service: Service, fields: CompletionFields, session_header: str | None) -> Request:
    prompt = _completion_prompt(service, fields)
    params = sampling_params(service, fields, len(prompt))
    return engine_request(service, fields, "cmpl-", prompt, params, session_header)


def _options(request: Request, fields: GenerationFields) -> dict[str, Any]:
    """What every format takes."""
    params = request.params
    return {"choices": params.n, "logprobs": params.logprobs is not None, "usage": fields.include_usage}


def _completion_prompt(service: Service, fields: CompletionFields) -> list[int]:
    if isinstance(fields.prompt, str):
        return service.tokenizer.encode(fields.prompt, most=service.most_tokens)
    size = service.tokenizer.vocab_size
    if not all(0 <= token < size for token in fields.prompt):
        raise RequestError(f"prompt: token ids must be between 0 and {size - 1}", param="prompt")
    return fields.prompt


def _model_card(service: Service, created: int) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": created,
        "owned_by": "sweq",
        "max_model_len": service.max_context,
    }
