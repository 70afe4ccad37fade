"""What a caller asks of the engine and what it gets back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.cache.snapshots import Source
from engine.errors import RequestError

FinishReason = Literal["stop", "length", "abort", "error"]
GrammarKind = Literal["json_schema", "json_object", "regex", "ebnf", "structural_tag", "json_structural_tag"]


@dataclass(frozen=True)
class Grammar:
    """The language that a whole completion must belong to.

    `text` is a JSON schema (as JSON), a regular expression that the whole text matches, an EBNF grammar whose first
    rule is `root`, or one of xgrammar's structural tags (as JSON; a "json_structural_tag" where all that is not fixed
    is JSON); "json_object" (any JSON object) needs none. `param` is the field that errors about it name.
    """

    kind: GrammarKind
    text: str = ""
    param: str = field(default="grammar", compare=False)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    `temperature` 0 is greedy. `seed` makes a request's text repeatable whatever else is in the batch; the i-th of `n`
    choices draws as a request with `seed + i` does. `presence_penalty` and `frequency_penalty` count generated tokens,
    `repetition_penalty` those of the prompt as well; `logit_bias` maps token ids to what is added to their logits.
    `logprobs` is the number of alternatives to report per token (0: the chosen token's own only; None: none at all);
    they are the model's own, before penalties, bias, grammar and temperature. `prompt_logprobs` asks for those of the
    prompt's tokens from the second on; such a prompt is computed whole. `grammar` constrains the whole text.
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
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None

    def check(self) -> None:
        """RequestError that names the first field out of range."""
        for name, ok, right in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number, 0 or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more"),
            ("prompt_logprobs", self.prompt_logprobs is None or self.prompt_logprobs >= 0, "0 or more"),
            ("n", self.n >= 1, "at least 1"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a finite number above 0"),
            ("logit_bias", all(map(math.isfinite, self.logit_bias.values())), "finite numbers by token id"),
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
    """A finished generation. `text` ends before the stop string; `cached_tokens` prompt tokens were not recomputed.

    `index` counts the `n` choices of one request; the first alone has `prompt_logprobs`.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int = 0
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None
    index: int = 0
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True)
class StepOutput:
    """What one step produced for choice `index` of a request: new ids, the text they complete, the reason if it ended.

    `text` holds only characters that can no longer become part of a stop string or a split UTF-8 sequence, so the
    concatenation over all steps is the completion's text. `stop_string` is the one that ended it, if one did.
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
    index: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    stop_string: str | None = None


@dataclass(frozen=True)
class Request:
    """One generation: prompt ids and how to sample.

    `session_id` names the conversation it belongs to, so that `Engine.end_session` can forget it exactly.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    session_id: str | None = None
