"""Norms in one launch each: a program per row, arithmetic in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_matrix.operands import early
from engine.kernels.triton_matrix.tiles import await_inputs


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference.rms_norm`."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    output = torch.empty(rows.shape, dtype=dtype, device=x.device)
    if len(rows):
        _rms_norm[(len(rows),)](
            rows, rows, weight, output, eps, width, rows.stride(0), 0, triton.next_power_of_2(width), False,
            num_warps=4, **early(x),
        )  # fmt: skip
    return output.view(x.shape)


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference.add_rms_norm`."""
    tokens, width = hidden.shape
    output = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
    if tokens:
        _rms_norm[(tokens,)](
            hidden,
            delta,
            weight,
            output,
            eps,
            width,
            hidden.stride(0),
            delta.stride(0),
            triton.next_power_of_2(width),
            True,
            num_warps=4,
            **early(hidden),
        )
    return output


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `reference_delta.gated_rms_norm`; `x` is contiguous [T, H, D], `gate` [T, H, D] has any stride of rows."""
    tokens, heads, width = x.shape
    output = torch.empty(x.shape, dtype=dtype, device=x.device)
    if tokens:
        block = triton.next_power_of_2(width)
        strides = (gate.stride(0), gate.stride(1))
        _gated_rms_norm[(tokens, heads)](x, gate, weight, output, eps, width, *strides, block, num_warps=1)
    return output


@triton.jit
def _rms_norm(
    hidden, delta, weight, output, eps, width, hidden_stride, delta_stride, BLOCK: tl.constexpr, ADD: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    here = at < width
    factors = tl.load(weight + at, mask=here, other=0.0)
    await_inputs(EARLY)
    x = tl.load(hidden + row * hidden_stride + at, mask=here, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta + row * delta_stride + at, mask=here, other=0.0).to(tl.float32)
        tl.store(hidden + row * hidden_stride + at, x, mask=here)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    y = x * scale * factors
    tl.store(output + row * width + at, y.to(output.dtype.element_ty), mask=here)


@triton.jit
def _gated_rms_norm(x, gate, weight, output, eps, width, token_stride, head_stride, BLOCK: tl.constexpr):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    here = at < width
    place = (token * tl.num_programs(1) + head) * width + at
    value = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    z = tl.load(gate + token * token_stride + head * head_stride + at, mask=here, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    y = value * scale * tl.load(weight + at, mask=here, other=0.0) * z * tl.sigmoid(z)
    tl.store(output + place, y.to(output.dtype.element_ty), mask=here)
