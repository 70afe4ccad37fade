"""Request bodies of the OpenAI endpoints, checked strictly and turned into SamplingParams."""

import logging
from collections.abc import Iterable, Set
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from engine.core.request import Grammar, SamplingParams
from engine.errors import RequestError
from engine.serve.described import ChatMessages, ChatTools
from engine.serve.formats import ResponseFormat, StructuredOutputs

logger = logging.getLogger(__name__)

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_CHOICES = 128
MAX_SESSION_ID = 256
LOGGED_FIELDS = 1000
LOGGED_NAME = 80

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_grammar": (None,),
    "guided_choice": (None,),
}
"""Fields that would change the text and are not supported -> the values that ask for nothing."""


def _stop_strings(value: Any) -> list[str]:
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(item, str) and item for item in strings):
        raise ValueError("must be a non-empty string or a list of them")
    if len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings")
    if any(len(string) > MAX_STOP_LENGTH for string in strings):
        raise ValueError(f"at most {MAX_STOP_LENGTH} characters in a stop string")
    return strings


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopStrings = Annotated[
    list[str],
    BeforeValidator(
        _stop_strings,
        json_schema_input_type=StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
    ),
]


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


def _bias_by_id(value: Any) -> Any:
    """JSON's keys are strings; these must be those of token ids."""
    if not isinstance(value, dict):
        return value
    if not all(isinstance(key, str) and key.isdecimal() and len(key) < 10 for key in value):
        raise ValueError("keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None


class GenerationFields(BaseModel):
    """What all endpoints share. Unknown fields are accepted; a wrong type is an error that names the field.

    `prompt_field` is the field that errors about the prompt name.
    """

    prompt_field: ClassVar[str]

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopStrings = Field(default_factory=list)
    session_id: Annotated[str, Field(min_length=1, max_length=MAX_SESSION_ID)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_bias_by_id)] | None = (
        None
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, None for all that fit."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Number of alternatives to report per token, None for no log-probabilities."""
        return None

    @property
    def echoes_prompt(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    def check_supported(self) -> None:
        """Raise RequestError for a field that would change the answer and is not supported."""
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
            prompt_logprobs=logprobs if self.echoes_prompt else None,
            n=self.n or 1,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=self.logit_bias or {},
            grammar=self._grammar(),
        )

    def _grammar(self) -> Grammar | None:
        one = self.response_format.grammar() if self.response_format else None
        other = self.structured_outputs.grammar() if self.structured_outputs else None
        if one and other:
            raise RequestError(
                "structured_outputs: response_format asks for a form already", param="structured_outputs"
            )
        return one or other


class ChatFields(GenerationFields):
    """Body of `/v1/chat/completions`."""

    prompt_field: ClassVar[str] = "messages"

    messages: ChatMessages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: ChatTools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionFields(GenerationFields):
    """Body of `/v1/completions`."""

    prompt_field: ClassVar[str] = "prompt"

    prompt: Annotated[str | list[int], BeforeValidator(_one_prompt)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def echoes_prompt(self) -> bool:
        return bool(self.echo)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class FieldLog:
    """Logs each unknown field once per server, so that a person sees what a client asked for in vain."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def note(self, fields: BaseModel) -> None:
        names = set(fields.model_extra or {}) - set(NEUTRAL)
        self._log("ignoring unknown request fields: %s", {repr(name[:LOGGED_NAME]) for name in names})

    def note_tools(self, kinds: Iterable[str]) -> None:
        """Log the kinds of tools, in words, that a request offers in vain."""
        self._log("ignoring what no model here can call: %s", {f"tool: {kind[:LOGGED_NAME]}" for kind in kinds})

    def _log(self, message: str, names: Set[str]) -> None:
        # A client that makes names up fills neither the log nor the memory.
        new = sorted(names - self._seen)[: LOGGED_FIELDS - len(self._seen)]
        if new:
            self._seen.update(new)
            logger.warning(message, ", ".join(new))
