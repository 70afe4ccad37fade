"""What a caller asks of the engine and what it gets back."""

from dataclasses import dataclass, field
from typing import Literal

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
    logprobs: tuple[TokenLogprob, ...] = field(default=())
    error: str | None = None


@dataclass(frozen=True)
class Request:
    """One generation: prompt ids and how to sample."""

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
