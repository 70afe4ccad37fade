"""From a checked request body to what the engine takes: sampling parameters, the room left for an answer, an id."""

import uuid

from engine.core.request import Request, SamplingParams
from engine.errors import RequestError
from engine.serve.fields import GenerationFields
from engine.serve.service import Service

MAX_CHOICE_TOKENS = 1 << 22
"""Tokens of the prompt times choices: each choice keeps a copy."""


def sampling_params(service: Service, fields: GenerationFields, prompt_tokens: int) -> SamplingParams:
    """What `fields` ask of the sampler; RequestError for what is not supported or does not fit behind the prompt."""
    fields.check_supported()
    return fields.sampling(_max_tokens(service, fields, prompt_tokens), fields.alternatives)


def engine_request(
    service: Service,
    fields: GenerationFields,
    prefix: str,
    prompt: list[int],
    params: SamplingParams,
    session_header: str | None,
) -> Request:
    """A request with an id that begins with `prefix`, its slow preparation done. The body's session comes first."""
    if params.n * len(prompt) > MAX_CHOICE_TOKENS:
        message = (
            f"n: {params.n} choices of {len(prompt)} tokens are too many; their product may be {MAX_CHOICE_TOKENS}"
        )
        raise RequestError(message, param="n")
    service.engine.prepare(params)
    return Request(prefix + uuid.uuid4().hex, tuple(prompt), params, fields.session_id or session_header)


def _max_tokens(service: Service, fields: GenerationFields, prompt_tokens: int) -> int:
    """The tokens that may follow: what was asked, at most what remains of the context.

    Clients ask for fixed large limits whatever the model, so more than remains is cut rather than refused; the answer
    then ends with `length`.
    """
    param = fields.prompt_field
    if prompt_tokens == 0:
        raise RequestError(f"{param}: the prompt is empty", param=param)
    remaining = service.max_context - prompt_tokens
    if remaining < 1:
        raise RequestError(
            f"this model's maximum context length is {service.max_context} tokens, prompt and completion together; "
            f"the prompt has {prompt_tokens}",
            param=param,
            code="context_length_exceeded",
        )
    return min(fields.token_limit or remaining, remaining)
