"""y = x W^T for few tokens, where reading the weights is all the time there is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_matrix.arrivals import is_last, zeroed_counters
from engine.kernels.triton_matrix.blocks import UNIT_WORDS, is_block_type, row_products, row_words, unit_columns
from engine.kernels.triton_matrix.operands import Operands, early, row_step
from engine.kernels.triton_matrix.tables import choose
from engine.kernels.triton_matrix.tiles import await_inputs, load_rows, prefetch, product, row_terms

MOST_TOKENS = 64
"""Tokens up to which the kernels here beat a product over the dequantized matrix, or FP8 by FP8."""

PROGRAMS = 128
"""Programs that a matrix should make at least: about one for each multiprocessor."""

ROW_TOKENS = 2
"""Tokens up to which plain arithmetic keeps up with the memory."""


def multiply(x: Tensor, matrix: Operands) -> Tensor:
    """x bfloat16 [T, in], T up to `MOST_TOKENS`, to x W^T bfloat16 [T, out], accumulated in float32."""
    tokens = x.shape[0]
    y = torch.empty((tokens, matrix.out), dtype=x.dtype, device=x.device)
    x = x.contiguous()
    name = f"{matrix.format} {matrix.out}x{matrix.columns}"
    if tokens <= ROW_TOKENS:
        tuned = choose("row_linear", name, tokens)
        _row_kernel[(triton.cdiv(matrix.out, tuned["BN"]),)](
            x, matrix.weight, matrix.scale, y, tokens, matrix.out, matrix.columns, matrix.format, matrix.step,
            row_step(matrix.columns), triton.next_power_of_2(tokens), **tuned, **early(x),
        )  # fmt: skip
        return y
    tuned = choose("linear", name, tokens)
    BM, splits = rows_of_tile(tokens), column_splits(matrix)
    grid = (triton.cdiv(matrix.out, tuned["BN"]), triton.cdiv(tokens, BM), splits)
    partial = torch.empty((splits, tokens, matrix.out), dtype=torch.float32, device=x.device) if splits > 1 else y
    _kernel[grid](
        x,
        matrix.weight,
        matrix.scale,
        y,
        partial,
        zeroed_counters(x.device, grid[0] * grid[1]) if splits > 1 else y,
        tokens,
        matrix.out,
        matrix.columns,
        matrix.format,
        matrix.step,
        BM,
        splits,
        **tuned,
        **early(x),
    )
    return y


def rows_of_tile(tokens: int, most: int = 64) -> int:
    """The least tile of 16, 32, ... rows that holds `tokens`, up to `most`."""
    tile: int = min(most, max(16, triton.next_power_of_2(tokens)))
    return tile


def column_splits(matrix: Operands) -> int:
    """Programs that share a tile's columns: enough that a narrow matrix occupies a GPU, by the matrix alone.

    Sums are joined in order, so a token's result depends on no other token, and not on how many there are.
    """
    splits, programs = 1, triton.cdiv(matrix.out, 32)
    while programs * splits < PROGRAMS and matrix.columns % (4 * splits * matrix.step) == 0:
        splits *= 2
    return splits


@triton.jit(do_not_specialize=["T"])
def _row_kernel(
    x, w, s, y, T, N, K: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, BK: tl.constexpr,
    TOKENS: tl.constexpr, BN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    cols = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    tokens = tl.arange(0, TOKENS)
    at = tl.minimum(cols, N - 1)
    acc = tl.zeros((TOKENS, BN), tl.float32)
    if is_block_type(FORMAT):
        if EARLY:
            prefetch(w, at, K, FORMAT, K // 2)
        await_inputs(EARLY)
        activations = x + (tl.minimum(tokens, T - 1) * K)[:, None, None, None]
        rows = w + (at * row_words(FORMAT, K))[None, :, None, None]
        for k in tl.static_range(0, K, BK):
            acc += row_products(activations, None, rows, None, k, K, FORMAT, BK)
    else:
        for k in tl.static_range(0, K, BK):
            weights, scale, zero = load_rows(w, s, at, N, K, k, FORMAT, GROUP, BK)
            if k == 0:
                await_inputs(EARLY)
            for token in tl.static_range(TOKENS):
                row = tl.load(x + tl.minimum(token, T - 1) * K + k + tl.arange(0, BK))
                terms = row_terms(row, weights, scale, zero, FORMAT, GROUP, BN, BK)
                acc += tl.where(tokens[:, None] == token, terms[None, :], 0.0)
    tl.store(y + tokens[:, None] * N + cols[None, :], acc, mask=(tokens < T)[:, None] & (cols < N)[None, :])


@triton.jit(do_not_specialize=["T"])
def _kernel(
    x,
    w,
    s,
    y,
    partial,
    counters,
    T,
    N,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    BK: tl.constexpr,
    BM: tl.constexpr,
    SPLITS: tl.constexpr,
    BN: tl.constexpr,
    EARLY: tl.constexpr,
):
    cols = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    at = tl.minimum(cols, N - 1)
    COLUMNS: tl.constexpr = K // SPLITS
    first = tl.program_id(2) * COLUMNS
    if EARLY:  # what the first steps of the loop take
        if is_block_type(FORMAT):
            prefetch(w + first // unit_columns(FORMAT) * UNIT_WORDS, at, K, FORMAT, 1024)
        else:
            prefetch(w + (first // 2 if FORMAT == "int4" else first), at, K, FORMAT, 1024)
    await_inputs(EARLY)
    acc = product(x, rows, rows < T, w, s, at, N, K, FORMAT, BM, BN, BK, first, COLUMNS)
    place, valid = rows[:, None] * N + cols[None, :], (rows < T)[:, None] & (cols < N)[None, :]
    if SPLITS == 1:
        tl.store(y + place, acc, mask=valid)
    else:
        tl.store(partial + tl.program_id(2).to(tl.int64) * T * N + place, acc, mask=valid)
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if is_last(counters + tile, SPLITS):
            total = tl.zeros((BM, BN), tl.float32)
            for split in tl.static_range(SPLITS):
                own = partial + tl.full((), split, tl.int64) * T * N + place
                total += tl.load(own, mask=valid, other=0.0, cache_modifier=".cg")
            tl.store(y + place, total, mask=valid)
