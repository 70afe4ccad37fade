"""Replays what agents do: conversations whose every prompt is all that was said before, and a little more.

Turn 1 of a conversation sends a long prompt. Each later turn sends the previous prompt and answer again, token by
token, and what a tool returned. An engine without a cache computes nearly everything again at each turn; with one, only
what is new, and the share of sent-again tokens that were found in the cache is the figure to look at.
"""

import hashlib
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from engine.core.request import Request, SamplingParams, StepOutput
from engine.errors import UserError
from engine.llm import LLM
from engine.measure.bandwidth import read_bandwidth
from engine.measure.throughput import bytes_per_step


@dataclass(frozen=True)
class Trace:
    """Sizes in tokens of conversations that run side by side, each as fast as it is answered."""

    conversations: int = 8
    turns: int = 12
    first_prompt: int = 6000
    generated: int = 150
    tool_tokens: int = 900
    seed: int = 0

    @property
    def context(self) -> int:
        """Tokens of a conversation at its end."""
        return self.first_prompt + self.turns * self.generated + (self.turns - 1) * self.tool_tokens

    def check(self) -> None:
        """UserError for a size below 1."""
        for name in ("conversations", "turns", "first_prompt", "generated", "tool_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass
class Turn:
    """One request of a conversation; times in seconds on one clock."""

    prompt: list[int]
    resent: int
    sent_at: float
    answer: list[int] = field(default_factory=list)
    cached: int = 0
    first_at: float = 0.0
    last_at: float = 0.0

    def take(self, output: StepOutput, now: float) -> None:
        self.first_at = self.first_at or now
        self.last_at = now
        self.answer += output.token_ids
        self.cached = output.cached_tokens


def replay(llm: LLM, trace: Trace) -> dict[str, Any]:
    """Run the trace and describe it; times in seconds, rates in tokens per second over all conversations.

    `ttft` is the time from sending to the first token, of turns after the first. `resent_tokens` were sent in an
    earlier turn; `cached_tokens` of these were not computed again, `cached_share` is their ratio. Two runs of equal
    `text_sha256` generated the same token ids. The memory's limit on decoding stands beside the rate. UserError for a
    trace that cannot be run, or when a request fails.
    """
    trace.check()
    start = time.perf_counter()
    conversations = _run(llm, trace)
    wall = time.perf_counter() - start
    return {
        "kind": "agent",
        "model": llm.checkpoint.identity["model"],
        "quant": llm.checkpoint.identity["quant"],
        "device": llm.engine.config.device,
        "threads": torch.get_num_threads(),
        "prefix_cache": llm.engine.config.prefix_cache,
        "deterministic": llm.engine.config.deterministic,
        "wall_seconds": wall,
        **_figures(conversations, wall),
        **_limit(llm, trace),
        "engine": llm.engine.stats(),
    }


def _run(llm: LLM, trace: Trace) -> list[list[Turn]]:
    engine = llm.engine
    rng = [random.Random(f"{trace.seed} {number}") for number in range(trace.conversations)]
    vocabulary = llm.tokenizer.vocab_size
    told = [[rng[i].randrange(vocabulary) for _ in range(trace.first_prompt)] for i in range(trace.conversations)]
    conversations = [[_send(llm, trace, number, prompt, 0)] for number, prompt in enumerate(told)]
    with tqdm(total=trace.conversations * trace.turns, unit="turn", disable=None) as bar:
        while engine.has_work:
            for output in engine.step():
                number = int(output.request_id)
                turns = conversations[number]
                turns[-1].take(output, time.perf_counter())
                if output.error is not None:
                    raise UserError(f"conversation {number}, turn {len(turns)} failed: {output.error}")
                if output.finish_reason is None:
                    continue
                bar.update()
                if len(turns) == trace.turns:
                    engine.end_session(output.request_id)
                    continue
                known = turns[-1].prompt + turns[-1].answer
                new = [rng[number].randrange(vocabulary) for _ in range(trace.tool_tokens)]
                turns.append(_send(llm, trace, number, known + new, len(known)))
    return conversations


def _send(llm: LLM, trace: Trace, number: int, prompt: list[int], resent: int) -> Turn:
    params = SamplingParams(max_tokens=trace.generated, temperature=0.0, ignore_eos=True)
    llm.engine.add(Request(str(number), tuple(prompt), params, session_id=str(number)))
    return Turn(prompt, resent, time.perf_counter())


def _figures(conversations: list[list[Turn]], wall: float) -> dict[str, Any]:
    turns = [turn for conversation in conversations for turn in conversation]
    later = [turn for conversation in conversations for turn in conversation[1:]]
    waits = [turn.first_at - turn.sent_at for turn in later]
    resent, cached = sum(turn.resent for turn in later), sum(min(turn.cached, turn.resent) for turn in later)
    generated = sum(len(turn.answer) for turn in turns)
    return {
        "turns": len(turns),
        "prompt_tokens": sum(len(turn.prompt) for turn in turns),
        "generated_tokens": generated,
        "ttft_p50": _percentile(waits, 50),
        "ttft_p90": _percentile(waits, 90),
        "resent_tokens": resent,
        "cached_tokens": cached,
        "cached_share": cached / resent if resent else None,
        "generated_tokens_per_second": generated / wall,
        "decode_tokens_per_second": statistics.median(_decode_rate(turn) for turn in turns),
        "text_sha256": _digest(turns),
    }


def _decode_rate(turn: Turn) -> float:
    """Tokens per second of one answer once it has begun, prefills of others included."""
    return (len(turn.answer) - 1) / max(turn.last_at - turn.first_at, 1e-9)


def _percentile(values: list[float], percent: int) -> float | None:
    if not values:
        return None
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def _digest(turns: Iterable[Turn]) -> str:
    return hashlib.sha256(repr([turn.answer for turn in turns]).encode()).hexdigest()


def _limit(llm: LLM, trace: Trace) -> dict[str, Any]:
    """What moving a step's bytes would allow all conversations together half-way, at the bandwidth measured now."""
    bandwidth = read_bandwidth(torch.device(llm.engine.config.device))
    moved = bytes_per_step(llm, trace.conversations, (trace.first_prompt + trace.context) // 2)
    return {
        "bandwidth_bytes_per_second": bandwidth,
        "bytes_per_step": moved,
        "limit_tokens_per_second": trace.conversations * bandwidth / moved,
    }
