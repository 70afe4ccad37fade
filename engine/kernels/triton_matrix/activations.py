"""Activations rounded to FP8 as the official FP8 checkpoints have it: a scale for each token and 128 columns."""

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 128


def quantize(x: Tensor, by_token: bool = False) -> tuple[Tensor, Tensor]:
    """x [T, K] to e4m3 codes [T, K] and float32 scales [T, K / 128], x ≈ code · scale; K is a multiple of 128.

    The scales' memory has the tokens of a group of columns side by side, as cuBLASLt reads them, or with `by_token` a
    token's groups.
    """
    tokens, columns = x.shape
    codes = torch.empty((tokens, columns), dtype=torch.float8_e4m3fn, device=x.device)
    groups = columns // GROUP
    shape = (tokens, groups) if by_token else (groups, tokens)
    scale = torch.empty(shape, dtype=torch.float32, device=x.device)
    scale = scale if by_token else scale.t()
    rows = 32
    grid = (triton.cdiv(tokens, rows), groups)
    _quantize_kernel[grid](x.contiguous(), codes, scale, *scale.stride(), tokens, columns, rows, num_warps=4)
    return codes, scale


@triton.jit
def scaled_codes(x, GROUP_AXIS: tl.constexpr):
    """e4m3 codes and scales of a float32 tile whose axis `GROUP_AXIS` is one group."""
    scale = tl.maximum(tl.max(tl.abs(x), GROUP_AXIS) / 448.0, 1e-12)
    return (x / tl.expand_dims(scale, GROUP_AXIS)).to(tl.float8e4nv), scale


@triton.jit(do_not_specialize=["T", "token_stride"])
def _quantize_kernel(x, codes, scale, token_stride, group_stride, T, K, BM: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    at = rows[:, None] * K + tl.program_id(1) * 128 + tl.arange(0, 128)[None, :]
    valid = (rows < T)[:, None]
    values, scales = scaled_codes(tl.load(x + at, mask=valid, other=0.0).to(tl.float32), 1)
    tl.store(codes + at, values, mask=valid)
    tl.store(scale + tl.program_id(1) * group_stride + rows * token_stride, scales, mask=rows < T)
