"""Request bodies of the OpenAI endpoints, checked strictly and turned into SamplingParams."""

import logging
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from engine.core.request import SamplingParams
from engine.errors import RequestError

logger = logging.getLogger(__name__)

MAX_STOP_STRINGS = 16
MAX_SESSION_ID = 256

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "functions": (None, []),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}
"""Fields that would change the text and are not supported -> the values that ask for nothing."""


def _stop_strings(value: Any) -> list[str]:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(item, str) and item for item in strings):
        raise ValueError("must be a non-empty string or a list of them")
    if len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings")
    return strings


def _one_prompt(value: Any) -> str | list[int]:
    """A prompt as text or as token ids; a list that holds exactly one of either counts as that one."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    if isinstance(value, list) and all(isinstance(item, str | list) for item in value):
        raise ValueError("only one prompt per request is supported")
    raise ValueError("must be a string or a list of token ids")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None


class GenerationFields(BaseModel):
    """What both endpoints share. Unknown fields are accepted; a wrong type is an error that names the field."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[str], BeforeValidator(_stop_strings)] = Field(default_factory=list)
    session_id: Annotated[str, Field(min_length=1, max_length=MAX_SESSION_ID)] | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_supported(self) -> None:
        """Raise RequestError for a field that would change the answer and is not supported."""
        if self.n not in (None, 1):
            raise RequestError("n: only 1 completion per request is supported", param="n")
        for name, allowed in NEUTRAL.items():
            if name in self.extra_fields() and self.extra_fields()[name] not in allowed:
                raise RequestError(f"{name} is not supported by this server", param=name)

    def extra_fields(self) -> dict[str, Any]:
        return self.model_extra or {}

    def sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=self.seed,
            stop=tuple(self.stop),
            logprobs=logprobs,
        )


class ChatFields(GenerationFields):
    """Body of `/v1/chat/completions`."""

    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Number of alternatives to report per token, None for no log-probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionFields(GenerationFields):
    """Body of `/v1/completions`."""

    prompt_field: ClassVar[str] = "prompt"

    prompt: Annotated[str | list[int], BeforeValidator(_one_prompt)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class FieldLog:
    """Logs each unknown field once per server, so that a person sees what a client asked for in vain."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def note(self, fields: GenerationFields) -> None:
        new = sorted(set(fields.extra_fields()) - self._seen - set(NEUTRAL))
        if new and len(self._seen) < 1000:
            self._seen.update(new)
            logger.warning("ignoring unknown request fields: %s", ", ".join(repr(name) for name in new))
