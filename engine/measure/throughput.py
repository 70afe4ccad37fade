"""Tokens per second of decode and prefill, each beside the ceiling that memory bandwidth sets in the same run."""

import random
import statistics
import time
from typing import Any

import torch

from engine.core.request import Request, SamplingParams
from engine.llm import LLM
from engine.measure.bandwidth import product_rate, read_bandwidth
from engine.measure.roofline import LINK, Machine, decode_bytes, link_bytes, prefill_limit
from engine.weights.loader import memory_report


def decode(llm: LLM, batch: int = 1, prompt: int = 32, tokens: int = 64, repeats: int = 3) -> dict[str, Any]:
    """Decode speed at `batch` sequences after prompts of `prompt` tokens: the median of `repeats` runs.

    Tokens per second are counted over all sequences once each has its first token. `limit_tokens_per_second` is what
    moving a step's bytes (`engine.measure.roofline.decode_bytes`) would allow at the read bandwidth measured just
    before: batch · bandwidth / bytes. Of several ranks these are the first one's, and the time of the sums between
    them (`link_bytes_per_step`, at the speed that the links are made for) comes on top. `seconds_per_step` is the time
    between two tokens of a sequence, `device_seconds_per_step` what the device itself took for the mean step that was
    launched (`Engine.device_time`), None where none was.
    """
    before = llm.engine.device_time()
    runs = [_decode_once(llm, _prompts(llm, batch, prompt, seed), tokens) for seed in range(repeats)]
    device_time = _mean_step(before, llm.engine.device_time())
    bandwidth, moved = read_bandwidth(torch.device(llm.engine.config.device)), bytes_per_step(llm, batch, prompt)
    sent = link_bytes(llm.checkpoint.config, batch, llm.engine.config.tensor_parallel_size)
    return _result(llm, "decode", runs, bandwidth) | {
        "batch": batch,
        "prompt_tokens": prompt,
        "seconds_per_step": batch / statistics.median(runs),
        "device_seconds_per_step": device_time,
        "bytes_per_step": moved,
        "link_bytes_per_step": sent,
        "limit_tokens_per_second": batch / (moved / bandwidth + sent / LINK),
    }


def prefill(llm: LLM, tokens: int = 1024, repeats: int = 3) -> dict[str, Any]:
    """Prefill speed: `tokens` fresh prompt tokens over the time to the first token, the median of `repeats` runs.

    `limit_tokens_per_second` is what the products would take at the bfloat16 rate, or the bytes at the bandwidth, both
    measured just before.
    """
    runs = [_prefill_once(llm, _prompts(llm, 1, tokens, seed)[0]) for seed in range(repeats)]
    device = torch.device(llm.engine.config.device)
    machine, ranks = Machine(read_bandwidth(device), product_rate(device)), llm.engine.config.tensor_parallel_size
    limit = prefill_limit(llm.checkpoint.config, memory_report(llm.checkpoint), tokens, machine, ranks)
    return _result(llm, "prefill", runs, machine.bandwidth) | {
        "prompt_tokens": tokens,
        "product_operations_per_second": machine.rate,
        "limit_tokens_per_second": limit,
    }


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


def _mean_step(before: tuple[float, int] | None, after: tuple[float, int] | None) -> float | None:
    """Seconds of the device a step, between two readings of `Engine.device_time`."""
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _prefill_once(llm: LLM, prompt: list[int]) -> float:
    start = time.perf_counter()
    llm.generate([prompt], _greedy(1))
    return len(prompt) / (time.perf_counter() - start)


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


def bytes_per_step(llm: LLM, batch: int, context: int) -> int:
    """Bytes that a decode step of `batch` sequences with `context` tokens each moves at this model's level."""
    ranks = llm.engine.config.tensor_parallel_size
    return round(decode_bytes(llm.checkpoint.config, memory_report(llm.checkpoint), batch, context, ranks))
