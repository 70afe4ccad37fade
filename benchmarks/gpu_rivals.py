"""Our GPU kernels beside others' in one run: fla-core's delta rule, DeepGEMM's and humming's matrix products.

    python benchmarks/gpu_rivals.py OUT.json

At the shapes of Qwen3-Coder-Next. Every case prints both medians in microseconds, the limit of this device's memory or
multipliers where one was given, and each result's relative error against float64, so that a rival that computes
something else shows. A rival that is not installed, or does not run here, says so on its line. Needs a Hopper GPU; exit
status 2 without one.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COPY, PRODUCTS = 4.2e12, 7.9e14
"""Bytes and bfloat16 operations a second that one H200 was measured to do (benchmarks/NOTES.md)."""

HEADS, KEY_HEADS, DIM, HIDDEN = 32, 16, 128, 2048
COPIES = 8
"""Sets of weights that calls go over."""


def median_us(calls: Sequence[Callable[[], object]]) -> float:
    """Of one call, from replays of a graph of all of them: over other weights each, more than the L2 cache holds."""
    for call in calls:
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(20):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) * 1e3 / len(calls))
    return statistics.median(times)


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def delta_rule(tokens: int) -> dict[str, Any]:
    """From q|k|v after the convolution to the outputs, gates included on our side, norms of q and k on both."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    from engine.kernels.reference_delta import DeltaWeights
    from engine.kernels.triton.delta_runs import delta_rule_runs
    from engine.kernels.triton.run_plan import plan_runs

    torch.manual_seed(0)
    mixed = torch.randn(tokens, (2 * KEY_HEADS + HEADS) * DIM, device="cuda", dtype=torch.bfloat16)
    ba = torch.randn(tokens, 2 * HEADS, device="cuda", dtype=torch.bfloat16)
    zeros = torch.zeros(HEADS, device="cuda")
    weights = DeltaWeights(mixed[0, None], zeros + 1.0, zeros, zeros[:1].expand(DIM), 1e-6, KEY_HEADS)
    state = torch.zeros(1, HEADS, DIM, DIM, device="cuda")
    plan = plan_runs((tokens,), torch.zeros(1, dtype=torch.int64, device="cuda"))
    q, k, v = mixed.split([KEY_HEADS * DIM, KEY_HEADS * DIM, HEADS * DIM], -1)
    wide = [x.view(1, tokens, KEY_HEADS, DIM).repeat_interleave(HEADS // KEY_HEADS, 2) for x in (q, k)]
    b, a = ba.view(tokens, KEY_HEADS, 2, -1).unbind(2)
    beta = b.reshape(1, tokens, HEADS).float().sigmoid()
    g = -torch.nn.functional.softplus(a.reshape(1, tokens, HEADS).float())
    value = v.reshape(1, tokens, HEADS, DIM).contiguous()

    def rival() -> Tensor:
        output, _ = chunk_gated_delta_rule(
            *wide, value, g, beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        return output[0]

    def own() -> Tensor:
        return delta_rule_runs(mixed, ba, weights, state, plan)

    state.zero_()
    got = own().clone()
    state.zero_()
    difference = error(got, rival())
    return {"ours": median_us([own] * 8), "rival": median_us([rival] * 8), "difference": difference}


def dense(tokens: int, out: int, columns: int) -> dict[str, Any]:
    """FP8 by FP8 with block scales, activations rounded beforehand on the rival's side and within ours."""
    import deep_gemm

    from engine.kernels.triton_matrix.activations import quantize
    from engine.quant import fp8_dynamic
    from engine.quant.formats import pack
    from engine.quant.linear import QuantizedLinear

    torch.manual_seed(0)
    weights = [torch.randn(out, columns, device="cuda") * columns**-0.5 for _ in range(COPIES)]
    packed = [pack(weight, "fp8") for weight in weights]
    x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    want = x.double() @ weights[0].double().t()
    result = torch.empty(tokens, out, device="cuda", dtype=torch.bfloat16)
    left = quantize(x, by_token=True)

    def rival(number: int) -> Tensor:
        deep_gemm.fp8_gemm_nt(left, (packed[number].tensors["weight"], packed[number].tensors["scale"]), result)
        return result

    multiply = fp8_dynamic.multiply if tokens > 64 else lambda x, packed: QuantizedLinear(packed)(x)
    limit = max(out * columns / COPY, tokens * out * columns / PRODUCTS) * 1e6
    return {
        "ours": median_us([partial(multiply, x, one) for one in packed]),
        "rival": median_us([partial(rival, number) for number in range(COPIES)]), "limit": limit,
        "error_ours": error(multiply(x, packed[0]), want), "error_rival": error(rival(0), want),
    }  # fmt: skip


def int4(tokens: int, out: int, columns: int) -> dict[str, Any]:
    """Weight-only int4 in groups of 128."""
    from humming.layer import HummingLayer

    from engine.quant.formats import pack
    from engine.quant.linear import QuantizedLinear

    torch.manual_seed(0)
    weights = [torch.randn(out, columns, device="cuda", dtype=torch.bfloat16) * columns**-0.5 for _ in range(COPIES)]
    x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    rivals = []
    for weight in weights:
        form = {"dtype": "int4", "group_size": 128}
        layer = HummingLayer(shape_n=out, shape_k=columns, weight_config=form, torch_dtype=torch.bfloat16).cuda()
        layer.load_from_unquantized(weight)
        layer.transform()
        rivals.append(layer)
    own = [QuantizedLinear(pack(weight.float(), "int4")) for weight in weights]
    want = x.double() @ weights[0].double().t()
    return {
        "ours": median_us([partial(layer, x) for layer in own]),
        "rival": median_us([partial(layer, x) for layer in rivals]),
        "limit": max(out * columns * 0.53 / COPY, 2 * tokens * out * columns / PRODUCTS) * 1e6,
        "error_ours": error(own[0](x), want), "error_rival": error(rivals[0](x), want),
    }  # fmt: skip


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for tokens in (896, 8192):
        yield f"delta rule, {tokens} tokens; rival fla-core", partial(delta_rule, tokens)
    for tokens in (8, 64, 912, 8192):
        yield f"qkvz 12288 x 2048 fp8, {tokens} tokens; rival DeepGEMM", partial(dense, tokens, 12288, HIDDEN)
    for tokens in (1, 8, 64):
        yield f"qkvz 12288 x 2048 int4, {tokens} tokens; rival humming", partial(int4, tokens, 12288, HIDDEN)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_rivals: no CUDA device", file=sys.stderr)
        return 2
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name, case in cases():
        try:
            figures = {key: round(value, 4) for key, value in case().items()}
        except Exception as problem:  # others' packages fail in their own ways; each case stands alone
            figures = {"not run": f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"}
        report[name] = figures
        print(f"{name}: {json.dumps(figures)}", flush=True)
        Path(sys.argv[1]).write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
