"""FP8 products with FP8 activations, where the hardware multiplies e4m3 blocks: Hopper and newer.

The scheme of the official FP8 checkpoints (`activation_scheme: dynamic`): weights have a scale per 128 x 128 block, and
each token's activations one per 128 columns, `absmax / 448`, found anew for every product (DeepSeek-AI 2024,
"DeepSeek-V3 Technical Report", section 3.3.2). Elsewhere FP8 is a weight-only format.
"""

import torch
from torch import Tensor

from engine.quant import whole
from engine.quant.formats import FP8_BLOCK, Packed
from engine.quant.gpu import gpu_kernels

LARGEST = 448.0
"""The largest e4m3 value."""

SMALLEST_SCALE = 1e-12
ROWS = 8
"""The kernel takes tokens in multiples of this; fewer are padded with zeros."""


def is_supported(packed: Packed) -> bool:
    """Whether `multiply` runs on the matrix's device and its blocks are whole."""
    if packed.device.type != "cuda" or torch.cuda.get_device_capability(packed.device) < (9, 0):
        return False
    return packed.format == "fp8" and all(size % FP8_BLOCK == 0 for size in packed.shape)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] to e4m3 codes [T, K] and float32 scales [T, K / 128], x ≈ code · scale; K is a multiple of 128."""
    groups = x.float().view(x.shape[0], -1, FP8_BLOCK)
    scale = (groups.abs().amax(-1) / LARGEST).clamp_(min=SMALLEST_SCALE)
    return (groups / scale.unsqueeze(-1)).to(torch.float8_e4m3fn).view(x.shape), scale


def multiply(x: Tensor, packed: Packed) -> Tensor:
    """x [T, in] @ W^T in the dtype of `x`: FP8 times FP8 for bfloat16 `x`, weight-only for any other."""
    if x.dtype != torch.bfloat16:
        return whole.multiply(x, packed)
    tokens = x.shape[0]
    padded = torch.nn.functional.pad(x, (0, 0, 0, -tokens % ROWS))
    kernels = gpu_kernels("activations")
    codes, scale = (kernels.quantize if kernels else quantize_activations)(padded)
    weight, weight_scale = packed.tensors["weight"], packed.tensors["scale"]
    # cuBLASLt wants the scales of a group of columns side by side: token-major memory, [T, K / 128] shape.
    side_by_side = scale.t().contiguous().t()
    y = torch._scaled_mm(codes, weight.t(), side_by_side, weight_scale.t(), out_dtype=torch.bfloat16)
    return y[:tokens]
