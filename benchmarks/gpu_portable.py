"""Speed of the portable CUDA path at the real shape: load, prefill and decode, beside what memory bandwidth allows.

    python benchmarks/gpu_portable.py [--quants fp8,int4] [--budget 330]

Prints one JSON line per figure and a summary. Weights are random (`synthetic:qwen3-coder-next`), so routing is nearly
even over experts, as bad as it gets for the bytes that a batch reads. The prefix cache is off: a prompt is one step.
Stops by itself, saying what was left out, when the budget of seconds is spent. Exit status 2 without a CUDA device.
"""

import argparse
import gc
import importlib.metadata
import json
import sys
import time
from typing import Any

import torch

from engine import LLM
from engine.config import ModelConfig
from engine.measure.throughput import decode, prefill
from engine.weights.loader import memory_report

MODEL = "synthetic:qwen3-coder-next"
COPY_BYTES = 1 << 30


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quants", default="fp8,int4")
    options.add_argument("--budget", type=float, default=330, help="seconds")
    options.add_argument("--batches", default="1,8,32")
    options.add_argument("--prompts", default="512,4096")
    chosen = options.parse_args()
    if not torch.cuda.is_available():
        print("gpu_portable: no CUDA device", file=sys.stderr)
        return 2
    until = time.perf_counter() + chosen.budget
    show("versions", **versions())
    bandwidth = copy_bandwidth()
    show("copy", terabytes_per_second=round(bandwidth / 1e12, 3))
    for quant in chosen.quants.split(","):
        measure(quant, bandwidth, numbers(chosen.prompts), numbers(chosen.batches), until)
        gc.collect()
        torch.cuda.empty_cache()
    return 0


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def show(figure: str, **values: Any) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


def versions() -> dict[str, str]:
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "absent"
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton,
        "driver": driver(),
        "python": sys.version.split()[0],
    }


def driver() -> str:
    try:
        with open("/proc/driver/nvidia/version") as stream:
            return stream.readline().split("Module")[-1].split()[0]
    except OSError:
        return "unknown"


def copy_bandwidth(passes: int = 10) -> float:
    """Bytes read and written per second of the best copy of 1 GiB within the device."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").fill_(1)
    target, best = torch.empty_like(source), 0.0
    for _ in range(passes):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        target.copy_(source)
        last.record()
        last.synchronize()
        best = max(best, 2 * COPY_BYTES / (first.elapsed_time(last) / 1e3))
    return best


def measure(quant: str, bandwidth: float, prompts: list[int], batches: list[int], until: float) -> None:
    """Every figure of one level, as far as time allows."""
    start = time.perf_counter()
    llm = LLM(MODEL, quant, "cuda", prefix_cache=False, max_running=32, max_step_tokens=max(prompts), max_context=8192)
    torch.cuda.synchronize()
    weights = sum(memory_report(llm.checkpoint).values())
    show("load", quant=quant, seconds=round(time.perf_counter() - start, 1), gib=round(weights / 2**30, 2))
    prefill(llm, min(prompts), repeats=1)  # warms up libraries and the allocator
    for tokens in prompts:
        if spent(until, f"{quant} prefill {tokens}"):
            return
        speed = prefill(llm, tokens, repeats=2)["tokens_per_second"]
        show("prefill", quant=quant, prompt=tokens, tokens_per_second=round(speed, 1))
    for batch in batches:
        if spent(until, f"{quant} decode {batch}"):
            return
        speed = decode(llm, batch, prompt=32, tokens=24, repeats=2)["tokens_per_second"]
        limit = batch * bandwidth / bytes_of_a_step(llm, batch)
        show(
            "decode",
            quant=quant,
            batch=batch,
            tokens_per_second=round(speed, 2),
            limit=round(limit, 1),
            share=round(speed / limit, 4),
        )
    show("peak", quant=quant, gib=round(torch.cuda.max_memory_allocated() / 2**30, 2))


def spent(until: float, what: str) -> bool:
    """Whether the budget is used up, and if so says what is left out."""
    if time.perf_counter() < until:
        return False
    show("left out", what=what)
    return True


def bytes_of_a_step(llm: LLM, batch: int) -> float:
    """Bytes of weights that `batch` tokens read: of the experts, the share that evenly routed tokens choose."""
    report, config = memory_report(llm.checkpoint), llm.checkpoint.config
    rest = sum(size for kind, size in report.items() if kind not in ("expert", "embedding"))
    return rest + report["expert"] * chosen_share(config, batch)


def chosen_share(config: ModelConfig, batch: int) -> float:
    """Expected share of experts that at least one of `batch` tokens chooses, each choosing k of E evenly."""
    return 1.0 - (1.0 - config.num_experts_per_token / config.num_experts) ** batch


if __name__ == "__main__":
    sys.exit(main())
