"""y = x W^T for few tokens, where reading the weights is all the time there is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_matrix.operands import Operands, early, row_step
from engine.kernels.triton_matrix.tables import choose
from engine.kernels.triton_matrix.tiles import await_inputs, prefetch, product, row_product

MOST_TOKENS = 128
"""Tokens up to which the kernels here beat a product over the dequantized matrix, or FP8 by FP8."""


def multiply(x: Tensor, matrix: Operands) -> Tensor:
    """x bfloat16 [T, in], T up to `MOST_TOKENS`, to x W^T bfloat16 [T, out], accumulated in float32."""
    tokens = x.shape[0]
    y = torch.empty((tokens, matrix.out), dtype=x.dtype, device=x.device)
    x = x.contiguous()
    name = f"{matrix.format} {matrix.out}x{matrix.columns}"
    if tokens == 1:
        tuned = choose("row_linear", name, 1)
        grid = (triton.cdiv(matrix.out, tuned["BN"]),)
        _row_kernel[grid](
            x,
            matrix.weight,
            matrix.scale,
            y,
            matrix.out,
            matrix.columns,
            matrix.format,
            matrix.step,
            row_step(matrix.columns),
            **tuned,
            **early(x),
        )
        return y
    tuned = choose("linear", name, tokens)
    BM = rows_of_tile(tokens)
    grid = (triton.cdiv(matrix.out, tuned["BN"]), triton.cdiv(tokens, BM))
    _kernel[grid](
        x, matrix.weight, matrix.scale, y, tokens, matrix.out, matrix.columns, matrix.format, matrix.step, BM,
        **tuned, **early(x),
    )
    return y


def rows_of_tile(tokens: int, most: int = 64) -> int:
    """The least tile of 16, 32, ... rows that holds `tokens`, up to `most`."""
    return min(most, max(16, triton.next_power_of_2(tokens)))


@triton.jit
def _row_kernel(
    x, w, s, y, N, K: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
    EARLY: tl.constexpr,
):
    cols = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    acc = row_product(x, w, s, tl.minimum(cols, N - 1), N, K, FORMAT, GROUP, BN, BK, EARLY)
    tl.store(y + cols, acc, mask=cols < N)


@triton.jit(do_not_specialize=["T"])
def _kernel(
    x, w, s, y, T, N, K: tl.constexpr, FORMAT: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EARLY: tl.constexpr,
):
    cols = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    rows = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    if EARLY:  # what the first steps of the loop take
        prefetch(w, tl.minimum(cols, N - 1), K, FORMAT, 1024)
    await_inputs(EARLY)
    acc = product(x, tl.minimum(rows, T - 1), w, s, tl.minimum(cols, N - 1), N, K, FORMAT, BM, BN, BK)
    tl.store(y + rows[:, None] * N + cols[None, :], acc, mask=(rows < T)[:, None] & (cols < N)[None, :])
