"""Tokens per second of decode and prefill, each beside the ceiling that memory bandwidth sets in the same run."""

import random
import statistics
import time
from typing import Any

import torch

from engine.core.request import Request, SamplingParams
from engine.llm import LLM
from engine.measure.bandwidth import read_bandwidth
from engine.weights.loader import memory_report


def decode(llm: LLM, batch: int = 1, prompt: int = 32, tokens: int = 64, repeats: int = 3) -> dict[str, Any]:
    """Decode speed at `batch` sequences after prompts of `prompt` tokens: the median of `repeats` runs.

    Tokens per second are counted over all sequences once each has its first token. `limit_tokens_per_second` is what
    reading the weights once per step would allow at the read bandwidth measured just before: batch · bandwidth / bytes.
    """
    runs = [_decode_once(llm, _prompts(llm, batch, prompt, seed), tokens) for seed in range(repeats)]
    bandwidth, weights = read_bandwidth(torch.device(llm.engine.config.device)), bytes_per_step(llm)
    return _result(llm, "decode", runs, bandwidth) | {
        "batch": batch,
        "prompt_tokens": prompt,
        "bytes_per_step": weights,
        "limit_tokens_per_second": batch * bandwidth / weights,
    }


def prefill(llm: LLM, tokens: int = 1024, repeats: int = 3) -> dict[str, Any]:
    """Prefill speed: `tokens` fresh prompt tokens over the time to the first token, the median of `repeats` runs."""
    runs = [_prefill_once(llm, _prompts(llm, 1, tokens, seed)[0]) for seed in range(repeats)]
    bandwidth = read_bandwidth(torch.device(llm.engine.config.device))
    return _result(llm, "prefill", runs, bandwidth) | {"prompt_tokens": tokens}


def _result(llm: LLM, kind: str, runs: list[float], bandwidth: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": llm.checkpoint.identity["model"],
        "quant": llm.checkpoint.identity["quant"],
        "device": llm.engine.config.device,
        "threads": torch.get_num_threads(),
        "tokens_per_second": statistics.median(runs),
        "runs": runs,
        "bandwidth_bytes_per_second": bandwidth,
    }


def _prompts(llm: LLM, count: int, length: int, seed: int) -> list[list[int]]:
    """Random prompts, new for each seed, so that the prefix cache has none of them."""
    rng = random.Random(seed)
    vocabulary = llm.tokenizer.vocab_size
    return [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


def _decode_once(llm: LLM, prompts: list[list[int]], tokens: int) -> float:
    engine = llm.engine
    for number, ids in enumerate(prompts):
        engine.add(Request(f"bench {number}", tuple(ids), _greedy(tokens)))
    started: set[str] = set()
    while len(started) < len(prompts):
        started |= {output.request_id for output in engine.step() if output.token_ids}
    produced, start = 0, time.perf_counter()
    while engine.has_work:
        produced += sum(len(output.token_ids) for output in engine.step())
    return produced / (time.perf_counter() - start)


def _prefill_once(llm: LLM, prompt: list[int]) -> float:
    start = time.perf_counter()
    llm.generate([prompt], _greedy(1))
    return len(prompt) / (time.perf_counter() - start)


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


def bytes_per_step(llm: LLM) -> int:
    """Bytes of weights that every step reads: all of a dense model's but an embedding that is only looked up."""
    report = memory_report(llm.checkpoint)
    tied = llm.checkpoint.config.tie_word_embeddings
    return sum(report.values()) - (0 if tied else report["embedding"])
