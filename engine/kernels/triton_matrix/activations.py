"""Activations rounded to FP8 as the official FP8 checkpoints have it: a scale for each token and 128 columns."""

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 128


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] to e4m3 codes [T, K] and float32 scales [T, K / 128], x ≈ code · scale; K is a multiple of 128.

    The scales' memory has the tokens side by side: that is how the matrix units' kernels read them.
    """
    tokens, columns = x.shape
    codes = torch.empty((tokens, columns), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((columns // GROUP, tokens), dtype=torch.float32, device=x.device)
    rows = 32
    grid = (triton.cdiv(tokens, rows), columns // GROUP)
    _quantize_kernel[grid](x.contiguous(), codes, scale, tokens, columns, rows, num_warps=4)
    return codes, scale.t()


@triton.jit
def scaled_codes(x, GROUP_AXIS: tl.constexpr):
    """e4m3 codes and scales of a float32 tile whose axis `GROUP_AXIS` is one group."""
    scale = tl.maximum(tl.max(tl.abs(x), GROUP_AXIS) / 448.0, 1e-12)
    return (x / tl.expand_dims(scale, GROUP_AXIS)).to(tl.float8e4nv), scale


@triton.jit(do_not_specialize=["T"])
def _quantize_kernel(x, codes, scale, T, K, BM: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    at = rows[:, None] * K + tl.program_id(1) * 128 + tl.arange(0, 128)[None, :]
    valid = (rows < T)[:, None]
    values, scales = scaled_codes(tl.load(x + at, mask=valid, other=0.0).to(tl.float32), 1)
    tl.store(codes + at, values, mask=valid)
    tl.store(scale + tl.program_id(1) * T + rows, scales, mask=rows < T)
