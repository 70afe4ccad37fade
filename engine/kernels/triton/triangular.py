"""Inverses of the unit lower triangular matrices that the delta rule's chunks bring, 64 x 64 each.

In two steps: the 16 x 16 diagonal blocks D of (I + A)⁻¹ by forward substitution; then, with N = D (A − its diagonal
blocks), whose fourth power is zero, (I + A)⁻¹ = (I + N)⁻¹ D = (I − N)(I + N²) D.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 16


def invert(systems: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(I + A)⁻¹ · diag(scale) of strictly lower triangular `systems` float32 [N, H, C, C], `scale` [N, H, C].

    The result [2, N, H, C, C] of `dtype` is a sum of two parts: high and low.
    """
    size = systems.shape[-1]
    count, blocks = systems.shape[0] * systems.shape[1], size // BLOCK
    solved = torch.empty(count, blocks, BLOCK, BLOCK, dtype=torch.float32, device=systems.device)
    parts = torch.empty(2, *systems.shape, dtype=dtype, device=systems.device)
    _invert_blocks[(count,)](systems, solved, C=size, BLOCKS=blocks, SIDE=BLOCK, num_warps=1)
    _join_blocks[(count,)](systems, solved, scale, *parts, C=size, SIDE=BLOCK, num_warps=4)
    return parts


@triton.jit
def halves(x, dtype: tl.constexpr):
    """`x` float32 as a sum of two numbers of `dtype`."""
    high = x.to(dtype)
    return high, (x - high.to(tl.float32)).to(dtype)


@triton.jit
def dot(x, y):
    return tl.dot(x, y, input_precision="tf32x3")


@triton.jit
def _invert_blocks(systems, solved, C: tl.constexpr, BLOCKS: tl.constexpr, SIDE: tl.constexpr):
    matrix = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)[:, None, None]
    i, j = tl.arange(0, SIDE)[None, :, None], tl.arange(0, SIDE)[None, None, :]
    near = tl.load(systems + matrix * C * C + (block * SIDE + i) * C + block * SIDE + j)
    result = tl.where(i == j, 1.0, 0.0) + tl.zeros_like(near)
    for row in range(1, SIDE):
        coefficients = tl.sum(tl.where(i == row, near, 0.0), 1)
        known = tl.sum(coefficients[:, :, None] * result, 1)
        result -= tl.where(i == row, known[:, None, :], 0.0)
    tl.store(solved + matrix * BLOCKS * SIDE * SIDE + (block * SIDE + i) * SIDE + j, result)


@triton.jit
def _join_blocks(systems, solved, scale, high_part, low_part, C: tl.constexpr, SIDE: tl.constexpr):
    matrix = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    same, identity = (i // SIDE) == (j // SIDE), tl.where(i == j, 1.0, 0.0)
    place = matrix * C * C + i * C + j
    far = tl.load(systems + place, mask=(i // SIDE) > (j // SIDE), other=0.0)
    blocks = tl.load(solved + matrix * C * SIDE + i * SIDE + j % SIDE, mask=same, other=0.0)
    far = dot(blocks, far)
    whole = dot(dot(identity - far, identity + dot(far, far)), blocks)
    high, low = halves(whole * tl.load(scale + matrix * C + j), high_part.dtype.element_ty)
    tl.store(high_part + place, high)
    tl.store(low_part + place, low)
