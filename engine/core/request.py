"""What a caller asks of the engine and what it gets back."""

import math
from dataclasses import dataclass, field
from typing import Literal

from engine.cache.snapshots import Source
from engine.errors import RequestError

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    `temperature` 0 is greedy. `seed` makes a request's text repeatable whatever else is in the batch. `logprobs` is
    the number of alternatives to report per token (0: the chosen token's own only; None: none at all).
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def check(self) -> None:
        """RequestError that names the first field out of range."""
        for name, ok, right in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number, 0 or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more"),
        ):
            if not ok:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be {right}", param=name)


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of the chosen token and of its best alternatives, `(token_id, logprob)` descending."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Completion:
    """A finished generation. `text` ends before the stop string; `cached_tokens` prompt tokens were not recomputed."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None


@dataclass(frozen=True)
class StepOutput:
    """What one step produced for one request: new ids, the text they complete, and the reason if it ended.

    `text` holds only characters that can no longer become part of a stop string or a split UTF-8 sequence, so the
    concatenation over all steps is the completion's text.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_source: Source | None = None
    logprobs: tuple[TokenLogprob, ...] = field(default=())
    error: str | None = None


@dataclass(frozen=True)
class Request:
    """One generation: prompt ids and how to sample.

    `session_id` names the conversation it belongs to, so that `Engine.end_session` can forget it exactly.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    session_id: str | None = None
