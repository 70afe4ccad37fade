"""Our GPU kernels beside others' in one run: fla-core's delta rule, DeepGEMM's and humming's matrix products.

    python benchmarks/gpu_rivals.py OUT.json

At the shapes of Qwen3-Coder-Next. Every case prints both medians in microseconds (the L2 cache flushed before each
call), the limit of this device's memory or multipliers where one was given, and each result's relative error against
float64, so that a rival that computes something else shows. A rival that is not installed, or does not run here, says
so on its line. Needs a Hopper GPU; exit status 2 without one.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COPY, PRODUCTS = 4.2e12, 7.9e14
"""Bytes and bfloat16 operations a second that one H200 was measured to do (benchmarks/NOTES.md)."""

HEADS, KEY_HEADS, DIM, HIDDEN, INNER, EXPERTS, TOP = 32, 16, 128, 2048, 512, 512, 10


def median_us(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=200, return_mode="median")) * 1e3


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def delta_rule(tokens: int) -> dict[str, Any]:
    """From q|k|v after the convolution to the outputs, gates included on our side, norms of q and k on both."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    from engine.kernels import triton as ours
    from engine.kernels.reference_delta import DeltaWeights

    torch.manual_seed(0)
    mixed = torch.randn(tokens, (2 * KEY_HEADS + HEADS) * DIM, device="cuda", dtype=torch.bfloat16)
    ba = torch.randn(tokens, 2 * HEADS, device="cuda", dtype=torch.bfloat16)
    zeros = torch.zeros(HEADS, device="cuda")
    weights = DeltaWeights(mixed[0, None], zeros + 1.0, zeros, zeros[:1].expand(DIM), 1e-6, KEY_HEADS)
    state = torch.zeros(1, HEADS, DIM, DIM, device="cuda")
    plan = ours.plan_runs((tokens,), torch.zeros(1, dtype=torch.int64, device="cuda"))
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
        return ours.delta_rule_runs(mixed, ba, weights, state, plan)

    state.zero_()
    got = own().clone()
    state.zero_()
    difference = error(got, rival())
    return {"ours": median_us(own), "rival": median_us(rival), "difference": difference}


def dense(tokens: int, out: int, columns: int) -> dict[str, Any]:
    """FP8 by FP8 with block scales, activations rounded beforehand on the rival's side and within ours."""
    import deep_gemm

    from engine.kernels.triton_matrix.activations import quantize
    from engine.quant import fp8_dynamic
    from engine.quant.formats import pack
    from engine.quant.linear import QuantizedLinear

    torch.manual_seed(0)
    weight = torch.randn(out, columns, device="cuda") * columns**-0.5
    packed = pack(weight, "fp8")
    x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    want = x.double() @ weight.double().t()
    result = torch.empty(tokens, out, device="cuda", dtype=torch.bfloat16)
    codes, scale = quantize(x, by_token=True)
    sides = (codes, scale), (packed.tensors["weight"], packed.tensors["scale"])

    def rival() -> Tensor:
        deep_gemm.fp8_gemm_nt(*sides, result)
        return result

    layer = QuantizedLinear(packed)
    own: Callable[[], Tensor] = (lambda: layer(x)) if tokens <= 64 else (lambda: fp8_dynamic.multiply(x, packed))
    limit = max(out * columns / COPY, tokens * out * columns / PRODUCTS) * 1e6
    return {
        "ours": median_us(own), "rival": median_us(rival), "limit": limit,
        "error_ours": error(own(), want), "error_rival": error(rival(), want),
    }  # fmt: skip


def experts(tokens: int) -> dict[str, Any]:
    """Both grouped products of the mixture; ours also routes, sorts, rounds and adds up, the rival does none of it."""
    import deep_gemm

    from benchmarks.autotune import stack_of
    from engine.kernels.triton_matrix import grouped

    stack = stack_of("fp8", small=False)
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
    chosen = torch.rand(tokens, EXPERTS, device="cuda").topk(TOP).indices
    weights = torch.full((tokens, TOP), 0.1, device="cuda")
    counts = torch.bincount(chosen.flatten(), minlength=EXPERTS)
    padded = (counts + 127) // 128 * 128
    rows = int(padded.sum())
    owner = torch.repeat_interleave(torch.arange(EXPERTS, device="cuda"), padded).int()
    groups = (HIDDEN // 128, INNER // 128)
    wide = torch.randn(rows, HIDDEN, device="cuda").to(torch.float8_e4m3fn), torch.ones(rows, groups[0], device="cuda")
    inner = torch.randn(rows, INNER, device="cuda").to(torch.float8_e4m3fn), torch.ones(rows, groups[1], device="cuda")
    up, down = (
        (part.weight.view(torch.float8_e4m3fn).view(EXPERTS, n, k), part.scale.view(EXPERTS, n // 128, k // 128))
        for part, n, k in ((stack.gate_up, 2 * INNER, HIDDEN), (stack.down, HIDDEN, INNER))
    )
    first = torch.empty(rows, 2 * INNER, device="cuda", dtype=torch.bfloat16)
    second = torch.empty(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)

    def rival() -> None:
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(wide, up, first, owner)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(inner, down, second, owner)

    read = float((counts > 0).sum()) * 3 * HIDDEN * INNER
    limit = max(read / COPY, 3 * tokens * TOP * HIDDEN * INNER / PRODUCTS) * 1e6
    return {
        "ours": median_us(lambda: grouped.moe(x, stack, weights, chosen, None)),
        "rival": median_us(rival), "limit": limit, "rows_of_rival": rows,
    }  # fmt: skip


def int4(tokens: int, out: int, columns: int) -> dict[str, Any]:
    """Weight-only int4 in groups of 128."""
    from humming.layer import HummingLayer

    from engine.quant.formats import pack
    from engine.quant.linear import QuantizedLinear

    torch.manual_seed(0)
    weight = torch.randn(out, columns, device="cuda", dtype=torch.bfloat16) * columns**-0.5
    x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    layer = HummingLayer(
        shape_n=out, shape_k=columns, weight_config={"dtype": "int4", "group_size": 128}, torch_dtype=torch.bfloat16
    ).cuda()
    layer.load_from_unquantized(weight)
    layer.transform()
    own = QuantizedLinear(pack(weight.float(), "int4"))
    want = x.double() @ weight.double().t()
    return {
        "ours": median_us(lambda: own(x)), "rival": median_us(lambda: layer(x)),
        "limit": max(out * columns * 0.53 / COPY, 2 * tokens * out * columns / PRODUCTS) * 1e6,
        "error_ours": error(own(x), want), "error_rival": error(layer(x), want),
    }  # fmt: skip


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for tokens in (896, 8192):
        yield f"delta rule, {tokens} tokens; rival fla-core", lambda tokens=tokens: delta_rule(tokens)
    for tokens in (8, 64, 912, 8192):
        yield (
            f"qkvz 12288 x 2048 fp8, {tokens} tokens; rival DeepGEMM",
            lambda tokens=tokens: dense(tokens, 12288, HIDDEN),
        )
    for tokens in (912, 8192):
        yield f"experts fp8, {tokens} tokens; rival DeepGEMM", lambda tokens=tokens: experts(tokens)
    for tokens in (1, 8, 64):
        yield (
            f"qkvz 12288 x 2048 int4, {tokens} tokens; rival humming",
            lambda tokens=tokens: int4(tokens, 12288, HIDDEN),
        )


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
