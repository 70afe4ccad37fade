"""What the agent asks of a model: one chat completion per turn."""

import copy
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from harness.config import SamplingConfig
from harness.errors import EndpointError

Message = dict[str, Any]

LEAST_COMPLETION = 64
"""Tokens: a completion is never asked for with less room than this, because no action fits into less."""

SESSION_HEADER = "x-session-id"
"""Names the conversation that a request belongs to."""

_ATTEMPTS = 6
_END_TIMEOUT = 10.0
_LONGEST_PAUSE = 60.0
_OVERFLOW = re.compile(
    r"context[ _](length|window|size|limit)|maximum context|max_model_len|"
    r"(prompt|input|request)\b.*\b(too long|longer than|exceeds?)\b|exceed_context|too many tokens",
    re.IGNORECASE,
)


class ContextExceeded(Exception):  # noqa: N818 - a limit of the task, not an error
    """The conversation no longer fits the model's context: a limit of the task, not a failure of the server."""


class RequestTimeoutError(EndpointError):
    """The server gave no answer within the time allowed for one request."""


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counted them; `cached_tokens` is the part of the prompt that it did not compute again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion together, cached or not: what fills a context."""
        return self.prompt_tokens + self.completion_tokens

    def new_tokens(self, before: "Usage | None") -> int:
        """Tokens that the conversation has not held before: what token budgets count.

        `before` is the usage of the call that this one continues: its prompt and answer begin this call's prompt, and
        are not counted again. The server's cache has no say, so that a budget ends the same work at every level.
        """
        known = before.total if before else 0
        return max(self.prompt_tokens - known, 0) + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True)
class ToolCall:
    """One call as the model wrote it: `arguments` is meant to be a JSON object but nothing has checked it yet."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """One answer. `raw_message` is what the history keeps; `max_tokens` is the room the answer was given."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage
    seconds: float
    raw_message: Message
    max_tokens: int


class ChatModel(Protocol):
    """A model behind a chat interface. `max_context` is in tokens, None where nobody knows it."""

    model_name: str
    max_context: int | None

    def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None,
        *,
        seed: int,
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """Answer `messages` with at most `max_tokens` tokens within `timeout` seconds (None: as configured).

        Raises `ContextExceeded`, `RequestTimeoutError`, or `EndpointError` for a server that fails.
        """
        ...


class EndpointModel:
    """A model behind any OpenAI-compatible server, asked without streaming.

    Connection errors, 408, 409, 429 and 5xx are tried again after 1, 2, 4, ... `backoff` seconds (or what the server's
    Retry-After says), six times in all. `extra` goes into every request body. Safe to share between threads.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model_name: str,
        sampling: SamplingConfig,
        request_timeout: float,
        max_context: int | None,
        extra: Mapping[str, Any] | None = None,
        *,
        backoff: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
        ends_sessions: bool = False,
    ) -> None:
        self.model_name = model_name
        self.max_context = max_context
        self._base_url = base_url
        self._sampling = sampling
        self._timeout = request_timeout
        self._backoff = backoff
        self._sleep = sleep
        self._ends_sessions = ends_sessions
        self._extra = dict(extra or {})
        if sampling.top_k is not None:
            self._extra["top_k"] = sampling.top_k
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=not _is_loopback(base_url)),
        )

    @contextmanager
    def session(self) -> Iterator["EndpointModel"]:
        """This model for one conversation, whose requests name it in the header `x-session-id`.

        Other servers than ours pass the header over. With `ends_sessions` the server is told when the conversation is
        over, and its cache forgets what only this conversation holds; one that does not hear it loses nothing else.
        """
        name = uuid.uuid4().hex
        model = copy.copy(self)
        model._client = self._client.with_options(default_headers={SESSION_HEADER: name})
        try:
            yield model
        finally:
            if self._ends_sessions:
                with suppress(openai.APIError):
                    self._client.post(f"/sessions/{name}/end", cast_to=object, options={"timeout": _END_TIMEOUT})

    def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None,
        *,
        seed: int,
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """See `ChatModel.complete`. Where the answer's room does not fit, a quarter of it is asked for, and so on."""
        room = min(max_tokens or self._sampling.max_tokens, self._sampling.max_tokens)
        body = self._body(messages, tools, seed)
        while True:
            try:
                return self._ask(body, room, self._timeout if timeout is None else min(timeout, self._timeout))
            except ContextExceeded:
                if room <= LEAST_COMPLETION:
                    raise
                room = max(room // 4, LEAST_COMPLETION)

    def _body(self, messages: Sequence[Message], tools: Sequence[Message] | None, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model_name,
            "messages": list(messages),
            "temperature": self._sampling.temperature,
            "seed": seed,
        }
        if self._sampling.top_p is not None:
            body["top_p"] = self._sampling.top_p
        if tools:
            body["tools"] = list(tools)
        if self._extra:
            body["extra_body"] = self._extra
        return body

    def _ask(self, body: dict[str, Any], max_tokens: int, timeout: float) -> Reply:
        deadline = time.monotonic() + timeout
        for attempt in range(1, _ATTEMPTS + 1):
            start = time.monotonic()
            left = deadline - start
            if left <= 0:
                break
            try:
                completion = self._client.chat.completions.create(**body, max_tokens=max_tokens, timeout=left)
                return _to_reply(completion, time.monotonic() - start, max_tokens, self._base_url)
            except openai.APIError as error:
                pause = self._pause(error, attempt)
            except ValueError as error:
                raise EndpointError(f"{self._base_url}: the answer is no JSON: {error}") from error
            self._sleep(min(pause, max(deadline - time.monotonic(), 0.0)))
        raise RequestTimeoutError(f"{self._base_url}: no answer within {timeout:.0f} s")

    def _pause(self, error: openai.APIError, attempt: int) -> float:
        """Seconds to wait before the next attempt; raises where another attempt would not help."""
        where = f"{self._base_url}: {type(error).__name__}: {_one_line(error)}"
        if isinstance(error, openai.APITimeoutError):
            raise RequestTimeoutError(f"{self._base_url}: no answer within the time for one request") from error
        if _is_overflow(error):
            raise ContextExceeded(_one_line(error)) from error
        if not _is_passing(error):
            raise EndpointError(where) from error
        if attempt == _ATTEMPTS:
            raise EndpointError(f"{where} (after {attempt} attempts)") from error
        return _retry_after(error) or min(self._backoff * 2.0 ** (attempt - 1), _LONGEST_PAUSE)


def _is_loopback(url: str) -> bool:
    """Whether `url` is on this machine, where a proxy named in the environment must not be asked."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _one_line(error: openai.APIError) -> str:
    return " ".join(error.message.split())[:500]


def _is_overflow(error: openai.APIError) -> bool:
    """Whether the server refused the request for its length. llama.cpp has answered this with status 500, too."""
    if not isinstance(error, openai.APIStatusError) or error.status_code in (401, 403, 404, 429):
        return False
    return error.code == "context_length_exceeded" or _OVERFLOW.search(f"{error.type} {error.message}") is not None


def _is_passing(error: openai.APIError) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def _retry_after(error: openai.APIError) -> float | None:
    """Seconds of a numeric Retry-After header (RFC 9110, 10.2.3), capped at a minute."""
    value = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    return min(float(value), _LONGEST_PAUSE) if value.isdigit() else None


def _to_reply(completion: ChatCompletion, seconds: float, max_tokens: int, where: str) -> Reply:
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise EndpointError(f"{where}: the answer is no chat completion with a choice: {str(completion)[:200]!r}")
    if completion.usage is None:
        raise EndpointError(f"{where}: the answer has no `usage`, without which token budgets cannot be kept")
    choice = completion.choices[0]
    text = _clean(choice.message.content or "")
    calls = _tool_calls(choice.message)
    details = completion.usage.prompt_tokens_details
    return Reply(
        text=text,
        tool_calls=calls,
        finish_reason=choice.finish_reason or "",
        usage=Usage(
            completion.usage.prompt_tokens,
            completion.usage.completion_tokens,
            (details.cached_tokens or 0) if details else 0,
        ),
        seconds=seconds,
        raw_message=_history_message(choice.message, text, calls),
        max_tokens=max_tokens,
    )


def _tool_calls(message: ChatCompletionMessage) -> tuple[ToolCall, ...]:
    calls = [call for call in message.tool_calls or () if call.type == "function"]
    return tuple(
        ToolCall(call.id or f"call_{number}", call.function.name or "", _clean(call.function.arguments or ""))
        for number, call in enumerate(calls)
    )


def _history_message(message: ChatCompletionMessage, text: str, calls: tuple[ToolCall, ...]) -> Message:
    """The fields that servers accept back; a null `refusal` or `audio` makes some of them refuse the next request."""
    kept: Message = {"role": "assistant", "content": text}
    if calls:
        kept["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    reasoning = (message.model_extra or {}).get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        kept["reasoning_content"] = _clean(reasoning)
    return kept


def _clean(text: str) -> str:
    """Lone surrogates, which JSON can carry, cannot be sent again as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
