"""Greedy texts of sweq-nano over several paths through the engine, and where two of them part."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from engine.core.request import Completion, SamplingParams, TokenLogprob
from engine.kernels import ops
from engine.llm import LLM
from engine.measure.conversations import read_conversations
from engine.measure.perplexity import Passage
from engine.quant import linear
from nano.data.tokenizer import MODEL

EPISODES = Path(__file__).parents[2] / "configs" / "episodes.jsonl"
GREEDY = SamplingParams(max_tokens=64, temperature=0.0, logprobs=2)


@dataclass(frozen=True)
class Parting:
    """The first place at which two greedy texts differ.

    `gaps`, nats: on each path, how much likelier its token was than the runner-up. `swapped`: whether each path's token
    was the other's runner-up.
    """

    place: int
    gaps: tuple[float, float]
    swapped: bool


def load_nano(quant: str = "bf16", device: str = "cpu", **limits: Any) -> LLM:
    return LLM(str(MODEL), quant, device, **({"max_running": 8, "max_context": 4096} | limits))


def read_passages(llm: LLM, count: int) -> list[Passage]:
    """The first `count` of the conversations that `make eval` scores."""
    return read_conversations(EPISODES, llm.checkpoint)[:count]


def prompts_of(passage: Passage) -> list[list[int]]:
    """What the model is asked at each of a conversation's turns, as ids."""
    starts = [at for at in range(1, len(passage.ids)) if passage.counted[at] and not passage.counted[at - 1]]
    return [list(passage.ids[:start]) for start in starts]


def part(one: Completion, other: Completion) -> Parting | None:
    """Where the texts part; None where they are the same."""
    assert one.logprobs is not None
    assert other.logprobs is not None
    for place, pair in enumerate(zip(one.logprobs, other.logprobs, strict=False)):
        if pair[0].token_id != pair[1].token_id:
            swapped = [_runner_up(a)[0] == b.token_id for a, b in (pair, pair[::-1])]
            return Parting(place, (_gap(pair[0]), _gap(pair[1])), all(swapped))
    assert one.token_ids == other.token_ids
    return None


def _runner_up(token: TokenLogprob) -> tuple[int, float]:
    return next(entry for entry in token.top if entry[0] != token.token_id)


def _gap(token: TokenLogprob) -> float:
    return token.logprob - _runner_up(token)[1]


@contextmanager
def portable_kernels() -> Iterator[Any]:
    """Within, models on CPU are opened over the plain torch kernels, which serve where no family of our own does."""
    families: Mapping[str, str] = MappingProxyType({"cpu": "reference"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_FAMILIES", families)
        patch.setattr(linear, "own_matrix", lambda packed: None)
        patch.setattr(linear, "own_view", lambda *packed: None)
        ops.family.cache_clear()
        yield ops.family("cpu")
    ops.family.cache_clear()


def complete(llm: LLM, prompts: Sequence[Sequence[int]]) -> list[Completion]:
    return llm.generate(prompts, GREEDY)
