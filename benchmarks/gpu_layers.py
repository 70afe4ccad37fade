"""Times of DeltaNet's and attention's kernels at the shapes of Qwen3-Coder-Next, beside what their bytes or operations
allow.

    python benchmarks/gpu_layers.py [--only decode|prefill] [--out FILE]

Each kernel runs over several layers' buffers in turn, so that none stays in the cache, inside a CUDA graph, so that
launches cost what they cost in a captured step. Prints one line per figure; exit status 2 without a CUDA device.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.kernels.ops import HeadNorms, family
from engine.kernels.reference_delta import DeltaWeights
from engine.kernels.triton import delta_runs

LAYERS = 12
BANDWIDTH = 4.1e12
BF16_RATE = 7.9e14
KEY_HEADS, VALUE_HEADS, DIM, HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 16, 32, 128, 16, 2, 256, 2048
STATE = 2 * VALUE_HEADS * DIM * DIM * 4


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=["decode", "prefill"])
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    if not torch.cuda.is_available():
        print("gpu_layers: no CUDA device", file=sys.stderr)
        return 2
    figures = []
    for name, group in (("decode", decode), ("prefill", prefill)):
        if chosen.only in (None, name):
            for figure in group():
                figures.append(figure)
                print(json.dumps(figure), flush=True)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(figures, indent=1))
    return 0


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device="cuda").to(dtype)


def measure(
    name: str, call: Callable[[int], object], nbytes: float = 0, operations: float = 0, **shape: int
) -> dict[str, Any]:
    """Median microseconds of `call(layer)`, over replays of a graph of one call for each layer."""
    for layer in range(2):
        call(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            call(layer)
    times = []
    for _ in range(7):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) * 1e3 / LAYERS)
    spent, floor = statistics.median(times[2:]), 1e6 * max(nbytes / BANDWIDTH, operations / BF16_RATE)
    return {
        "kernel": name,
        **shape,
        "us": round(spent, 2),
        "limit_us": round(floor, 2),
        "share": round(floor / spent, 3),
    }


def delta_weights() -> DeltaWeights:
    f32 = torch.float32
    channels = (2 * KEY_HEADS + VALUE_HEADS) * DIM
    conv, rate = randn(channels, 4, dtype=f32), torch.rand(VALUE_HEADS, device="cuda") * 15 + 1
    return DeltaWeights(conv, rate, randn(VALUE_HEADS, dtype=f32), randn(DIM, dtype=f32), 1e-6, KEY_HEADS)


def projections(tokens: int) -> tuple[Tensor, Tensor]:
    return randn(tokens, KEY_HEADS * 6 * DIM), randn(tokens, 2 * VALUE_HEADS)


def states(slots: int) -> list[tuple[Tensor, Tensor]]:
    channels = (2 * KEY_HEADS + VALUE_HEADS) * DIM
    shape = (slots, VALUE_HEADS, DIM, DIM)
    return [(randn(slots, channels, 3), randn(*shape, dtype=torch.float32)) for _ in range(LAYERS)]


def heads(tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, gate = randn(tokens, HEADS, 2 * HEAD_DIM).chunk(2, -1)
    return query, gate, randn(tokens, KV_HEADS, HEAD_DIM), randn(tokens, KV_HEADS, HEAD_DIM)


def caches(blocks: int) -> list[tuple[Tensor, Tensor]]:
    return [(randn(blocks, 16, KV_HEADS, HEAD_DIM), randn(blocks, 16, KV_HEADS, HEAD_DIM)) for _ in range(4)]


def decode() -> list[dict[str, Any]]:
    figures = []
    for batch in (1, 8, 32, 128):
        figures += [norm(batch, batch=batch), delta_net_step(batch)]
    for batch, context in ((1, 2048), (8, 2048), (32, 2048), (128, 2048), (1, 32768), (8, 32768), (1, 131072)):
        figures += decode_attention(batch, context)
    return figures


def norm(tokens: int, **shape: int) -> dict[str, Any]:
    kernels, weight = family("cuda"), randn(HIDDEN).float()
    hidden, delta = randn(tokens, HIDDEN).float(), randn(tokens, HIDDEN)

    def call(layer: int) -> Tensor:
        return kernels.add_rms_norm(hidden, delta, weight, 1e-6, torch.bfloat16)

    return measure("add_rms_norm", call, tokens * HIDDEN * 12, **shape)


def delta_net_step(batch: int) -> dict[str, Any]:
    kernels, weights, own = family("cuda"), delta_weights(), states(batch)
    (qkvz, ba), slots = projections(batch), torch.arange(batch, device="cuda")

    def call(layer: int) -> Tensor:
        return kernels.delta_net_step(qkvz, ba, weights, *own[layer], slots, torch.bfloat16)

    return measure("delta_net_step", call, batch * STATE, batch=batch)


def decode_attention(batch: int, context: int) -> list[dict[str, Any]]:
    kernels, own, (query, gate, key, value) = family("cuda"), caches(batch * context // 16), heads(batch)
    tables = torch.randperm(batch * context // 16, device="cuda").view(batch, -1).int()
    contexts = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    plan = kernels.plan_singles(contexts, tables, torch.tensor([tables.shape[1]], dtype=torch.int32, device="cuda"))
    norms, angles = HeadNorms(randn(HEAD_DIM).float(), randn(HEAD_DIM).float(), 1e-6), randn(batch, 1, 32).float()
    slots = tables[:, 0].long() * 16
    plain = query.contiguous()
    shape = {"batch": batch, "context": context}
    return [
        measure(
            "norm_rotate_and_store",
            lambda layer: kernels.norm_rotate_and_store(
                query, key, value, norms, angles, angles, *own[layer % 4], slots
            ),
            batch * (2 * HEADS + 4 * KV_HEADS) * HEAD_DIM * 2,
            **shape,
        ),
        measure(
            "decode_attention",
            lambda layer: kernels.gated_attention(plain, *own[layer % 4], plan, 1 / 16, gate, torch.bfloat16),
            batch * context * 2 * KV_HEADS * HEAD_DIM * 2,
            **shape,
        ),
    ]


def prefill() -> list[dict[str, Any]]:
    figures = []
    for lens in ((8192,), (1024,) * 8, (2048,)):
        figures += [*delta_net_runs(lens), norm(sum(lens), batch=sum(lens))]
    for tokens, context in ((8192, 8192), (8192, 32768), (512, 32768)):
        figures.append(prefill_attention(tokens, context))
    return figures


def delta_net_runs(lens: tuple[int, ...]) -> list[dict[str, Any]]:
    """The layer and its parts; the limit is of the bytes in and out."""
    kernels, weights, tokens, own = family("cuda"), delta_weights(), sum(lens), states(len(lens))
    qkvz, ba = projections(tokens)
    plan = kernels.plan_runs(lens, torch.arange(len(lens), device="cuda"))
    nbytes = tokens * (KEY_HEADS * 6 + VALUE_HEADS) * DIM * 2
    mixed = delta_runs.convolve_runs(qkvz, weights, *own[0], plan)
    values = delta_runs.delta_rule_runs(mixed, ba, weights, own[0][1], plan)
    calls = {
        "delta_net_runs": lambda layer: kernels.delta_net_runs(qkvz, ba, weights, *own[layer], plan, torch.bfloat16),
        "convolve_runs": lambda layer: delta_runs.convolve_runs(qkvz, weights, *own[layer], plan),
        "delta_rule_runs": lambda layer: delta_runs.delta_rule_runs(mixed, ba, weights, own[layer][1], plan),
        "gate_runs": lambda layer: delta_runs.gate_runs(values, qkvz, weights, torch.bfloat16),
    }
    return [measure(name, call, nbytes, runs=len(lens), tokens=tokens) for name, call in calls.items()]


def prefill_attention(tokens: int, context: int) -> dict[str, Any]:
    kernels, (query, gate, _, _), own = family("cuda"), heads(tokens), caches(context // 16)
    tables = torch.randperm(context // 16, device="cuda").view(1, -1).int()
    plan, plain = kernels.plan_attention(tables, (tokens,), (context,), 16), query.contiguous()

    def call(layer: int) -> Tensor:
        return kernels.gated_attention(plain, *own[layer % 4], plan, 1 / 16, gate, torch.bfloat16)

    operations = 4 * HEADS * HEAD_DIM * (tokens * (context - tokens) + tokens * tokens / 2)
    return measure("prefill_attention", call, 0, operations, tokens=tokens, context=context)


if __name__ == "__main__":
    sys.exit(main())
