"""Mixture of experts for many tokens: choices sorted by expert, and one product for each tile of tokens of one expert.

FP8 experts multiply FP8 activations, rounded for every token and 128 columns (DeepSeek-AI 2024, "DeepSeek-V3 Technical
Report", section 3.3.2); other formats are weight-only. The shared expert's tiles come first, as those of one expert
more that every token has chosen.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_matrix.activations import quantize, scaled_codes
from engine.kernels.triton_matrix.experts import ExpertStack, add_terms, gate_and_up
from engine.kernels.triton_matrix.routing import sort_choices, tile_table
from engine.kernels.triton_matrix.tables import choose
from engine.kernels.triton_matrix.tiles import product

BLOCK = tl.constexpr(128)
"""Rows and columns that share a weight's scale, and columns that share an activation's."""


def moe(x: Tensor, stack: ExpertStack, weights: Tensor, experts: Tensor, shared_weight: Tensor | None) -> Tensor:
    """See `experts.moe`."""
    tokens, choices = experts.shape
    order, starts = sort_choices(experts.int(), stack.count)
    rows = tokens * choices + tokens * (shared_weight is not None)
    terms = torch.empty((rows, stack.hidden), dtype=x.dtype, device=x.device)
    formats = {stack.gate_up.format, stack.down.format}
    run = _fp8 if formats == {"fp8"} and stack.inner % 128 == 0 else _weight_only
    run(x, stack, order, starts, terms, choices)
    return add_terms(terms, weights, shared_weight)


def _fp8(x: Tensor, stack: ExpertStack, order: Tensor, starts: Tensor, terms: Tensor, choices: int) -> None:
    """Fill `terms`, by choice; between the products FP8 codes and scales, by choice too."""
    tokens, rows = x.shape[0], terms.shape[0]
    up, down = stack.gate_up, stack.down
    shared_up, shared_down = stack.shared_gate_up_or_any, stack.shared_down_or_any
    codes, scale = quantize(x, by_token=True)
    inner = torch.empty((rows, stack.inner), dtype=codes.dtype, device=x.device)
    inner_scale = torch.empty((rows, stack.inner // 128), dtype=torch.float32, device=x.device)
    tuned = choose("fp8_gate_up", stack.name, tokens)
    table, shared = _tiles(starts, tuned["BM"], tokens, rows, choices)
    _fp8_gate_up_kernel[(stack.inner // 128, shared + table.shape[0])](
        codes, scale, up.weight, up.scale, shared_up.weight, shared_up.scale, table, shared, order, starts,
        inner, inner_scale, tokens, choices, stack.inner, stack.hidden, **tuned,
    )  # fmt: skip
    tuned = choose("fp8_down", stack.name, tokens)
    table, shared = _tiles(starts, tuned["BM"], tokens, rows, choices)
    _fp8_down_kernel[(triton.cdiv(stack.hidden, tuned["BN"]), shared + table.shape[0])](
        inner, inner_scale, down.weight, down.scale, shared_down.weight, shared_down.scale, table, shared,
        order, starts, terms, tokens, choices, stack.hidden, stack.inner, **tuned,
    )  # fmt: skip


def _weight_only(x: Tensor, stack: ExpertStack, order: Tensor, starts: Tensor, terms: Tensor, choices: int) -> None:
    tokens, rows = x.shape[0], terms.shape[0]
    up, down = stack.gate_up, stack.down
    shared_up, shared_down = stack.shared_gate_up_or_any, stack.shared_down_or_any
    inner = torch.empty((rows, stack.inner), dtype=x.dtype, device=x.device)
    tuned = choose("many_gate_up", stack.name, tokens)
    table, shared = _tiles(starts, tuned["BM"], tokens, rows, choices)
    _gate_up_kernel[(triton.cdiv(stack.inner, tuned["BN"] // 2), shared + table.shape[0])](
        x, up.weight, up.scale, up.expert_weight, up.expert_scale, shared_up.weight, shared_up.scale,
        stack.up_or_any.weight, stack.up_or_any.expert_weight, table, shared, order, starts, inner,
        tokens, choices, stack.inner, stack.hidden, up.format, stack.split, up.step, **tuned,
    )  # fmt: skip
    tuned = choose("many_down", stack.name, tokens)
    table, shared = _tiles(starts, tuned["BM"], tokens, rows, choices)
    _down_kernel[(triton.cdiv(stack.hidden, tuned["BN"]), shared + table.shape[0])](
        inner, down.weight, down.scale, down.expert_weight, down.expert_scale, shared_down.weight, shared_down.scale,
        table, shared, order, starts, terms, tokens, choices, stack.hidden, stack.inner, down.format, down.step,
        **tuned,
    )  # fmt: skip


def _tiles(starts: Tensor, rows: int, tokens: int, terms: int, choices: int) -> tuple[Tensor, int]:
    """The table of routed tiles and how many tiles of the shared expert come before them."""
    shared = triton.cdiv(tokens, rows) if terms > tokens * choices else 0
    return tile_table(starts, rows, tokens * choices), shared


@triton.jit
def _own_rows(tile, table, SHARED_TILES, order, starts, T, TOP: tl.constexpr, BM: tl.constexpr):
    """A tile's expert (-1: shared, -2: idle), its choices int64 [BM], their tokens, and which of them exist."""
    lanes = tl.arange(0, BM)
    if tile < SHARED_TILES:
        expert = tl.full((), -1, tl.int64)
        at = tile * BM + lanes
        exist = at < T
        tokens = tl.minimum(at, T - 1).to(tl.int64)
        choices = T * TOP + tokens
    else:
        expert = tl.load(table + 2 * (tile - SHARED_TILES)).to(tl.int64)
        if expert < 0:
            expert -= 1
        known = tl.maximum(expert, 0)
        last = tl.load(starts + known + 1)
        at = tl.load(table + 2 * (tile - SHARED_TILES) + 1) + lanes
        exist = at < last
        choices = tl.load(order + tl.maximum(tl.minimum(at, last - 1), 0)).to(tl.int64)
        tokens = choices // TOP
    return expert, choices, tokens, exist


@triton.jit
def _scaled_product(activations, weights, scale, weight_scale, TURNED: tl.constexpr):
    """FP8 activations [BM, K] times weights [BN, K] and their scales: [BM, BN], or if TURNED [BN, BM].

    The matrix units take at least 64 rows of the left operand, so of few tokens the weights' rows are these.
    """
    if TURNED:
        result = tl.dot(weights, tl.trans(activations)) * weight_scale[:, None] * scale[None, :]
    else:
        result = tl.dot(activations, tl.trans(weights)) * scale[:, None] * weight_scale[None, :]
    return result


@triton.jit(do_not_specialize=["T", "SHARED_TILES"])
def _fp8_gate_up_kernel(
    x, x_scale, w, s, shared_w, shared_s, table, SHARED_TILES, order, starts, inner, inner_scale,
    T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """One block of 128 inner columns: gate and up side by side, their SiLU product rounded to FP8 at once."""
    TURNED: tl.constexpr = BM < 64
    block = tl.program_id(0)
    expert, choices, tokens, exist = _own_rows(tl.program_id(1), table, SHARED_TILES, order, starts, T, TOP, BM)
    if expert == -2:
        return
    if expert >= 0:
        w += expert * (2 * N * K)
        s += expert * (2 * N // BLOCK * (K // BLOCK))
    else:
        w, s = shared_w, shared_s
    lanes = tl.arange(0, 128)
    x_at = x + tokens[:, None] * K + lanes[None, :]
    gate_at = w + (block * 128 + lanes)[:, None] * K + lanes[None, :]
    gate_scale = s + block * (K // BLOCK) + lanes * 0
    up_scale = gate_scale + N // BLOCK * (K // BLOCK)
    gate = tl.zeros((128, BM) if TURNED else (BM, 128), tl.float32)
    up = tl.zeros((128, BM) if TURNED else (BM, 128), tl.float32)
    for k in tl.range(0, K // BLOCK):
        activations = tl.load(x_at + k * 128)
        scale = tl.load(x_scale + tokens * (K // BLOCK) + k)
        gate_weights, up_weights = tl.load(gate_at + k * 128), tl.load(gate_at + N * K + k * 128)
        gate += _scaled_product(activations, gate_weights, scale, tl.load(gate_scale + k), TURNED)
        up += _scaled_product(activations, up_weights, scale, tl.load(up_scale + k), TURNED)
    result = gate * tl.sigmoid(gate) * up
    codes, scales = scaled_codes(tl.trans(result) if TURNED else result, 1)
    out = inner + choices[:, None] * N + (block * 128 + lanes)[None, :]
    tl.store(out, codes, mask=exist[:, None])
    tl.store(inner_scale + choices * (N // BLOCK) + block, scales, mask=exist)


@triton.jit(do_not_specialize=["T", "SHARED_TILES"])
def _fp8_down_kernel(
    inner, inner_scale, w, s, shared_w, shared_s, table, SHARED_TILES, order, starts, terms,
    T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    TURNED: tl.constexpr = BM < 64
    expert, choices, _, exist = _own_rows(tl.program_id(1), table, SHARED_TILES, order, starts, T, TOP, BM)
    if expert == -2:
        return
    if expert >= 0:
        w += expert * (N * K)
        s += expert * ((N + BLOCK - 1) // BLOCK * (K // BLOCK))
    else:
        w, s = shared_w, shared_s
    lanes = tl.arange(0, 128)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    at = tl.minimum(cols, N - 1)
    scale_at = s + at // BLOCK * (K // BLOCK)
    acc = tl.zeros((BN, BM) if TURNED else (BM, BN), tl.float32)
    for k in tl.range(0, K // BLOCK):
        activations = tl.load(inner + choices[:, None] * K + (k * 128 + lanes)[None, :])
        weights = tl.load(w + at[:, None] * K + (k * 128 + lanes)[None, :])
        scale = tl.load(inner_scale + choices * (K // BLOCK) + k)
        acc += _scaled_product(activations, weights, scale, tl.load(scale_at + k), TURNED)
    result = tl.trans(acc) if TURNED else acc
    tl.store(terms + choices[:, None] * N + cols[None, :], result, mask=exist[:, None] & (cols < N)[None, :])


@triton.jit(do_not_specialize=["T", "SHARED_TILES"])
def _gate_up_kernel(
    x, w, s, expert_weight, expert_scale, shared_w, shared_s, split_w, split_weight, table, SHARED_TILES,
    order, starts, inner, T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr,
    SPLIT: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    expert, choices, tokens, exist = _own_rows(tl.program_id(1), table, SHARED_TILES, order, starts, T, TOP, BM)
    if expert == -2:
        return
    if expert >= 0:
        w += expert * expert_weight
        s += expert * expert_scale
    else:
        w, s = shared_w, shared_s
    split_w += expert * split_weight
    gate, up = gate_and_up(x, tokens, exist, w, s, split_w, N, K, FORMAT, SPLIT, BM, BN, BK)
    at = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
    out = inner + choices[:, None] * N + at[None, :]
    tl.store(out, gate * tl.sigmoid(gate) * up, mask=exist[:, None] & (at < N)[None, :])


@triton.jit(do_not_specialize=["T", "SHARED_TILES"])
def _down_kernel(
    inner, w, s, expert_weight, expert_scale, shared_w, shared_s, table, SHARED_TILES, order, starts, terms,
    T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, BK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    expert, choices, _, exist = _own_rows(tl.program_id(1), table, SHARED_TILES, order, starts, T, TOP, BM)
    if expert == -2:
        return
    if expert >= 0:
        w += expert * expert_weight
        s += expert * expert_scale
    else:
        w, s = shared_w, shared_s
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    acc = product(inner, choices, exist, w, s, tl.minimum(cols, N - 1), N, K, FORMAT, BM, BN, BK)
    tl.store(terms + choices[:, None] * N + cols[None, :], acc, mask=exist[:, None] & (cols < N)[None, :])
