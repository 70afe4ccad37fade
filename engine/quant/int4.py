"""4-bit codes: which two columns share a byte.

On CPU byte j of 16 holds columns j and j + 16 of 32, the earlier one in the low nibble, so that a vector of bytes is
two vectors of adjoining columns (`engine.kernels.cpu.packed`). On other devices byte j of 64 holds columns j and j + 64
of 128, so that a tile of bytes is two tiles of adjoining columns (`engine.kernels.triton_matrix.tiles`), or, where 128
does not divide the columns, 32 of 64 and at last 16 of 32. Files have another order (`engine.quant.grouped_int`).
"""

from functools import lru_cache

import torch
from torch import Tensor

GROUPS = (128, 64, 32)  # columns that share a scale, the cheapest in bytes first
_CPU_HALF = 16


def pack_codes(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [out, in] (any integer type) to bytes uint8 [out, in / 2], ordered for the codes' device."""
    return pack_halves(codes, _half(codes.device, codes.shape[1]))


def pack_halves(codes: Tensor, half: int) -> Tensor:
    """Codes 0 to 15 [out, in] to bytes uint8 [out, in / 2]: byte j of `half` holds columns j and j + `half`."""
    halves = codes.to(torch.uint8).reshape(codes.shape[0], -1, 2, half)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1)


def _half(device: torch.device, columns: int) -> int:
    if device.type == "cpu":
        return _CPU_HALF
    return next((group // 2 for group in GROUPS if columns % group == 0), 1)


def unpack_codes(packed: Tensor) -> Tensor:
    """Codes uint8 [..., out, in] of bytes uint8 [..., out, in / 2]."""
    halves = packed.reshape(*packed.shape[:-1], -1, _half(packed.device, 2 * packed.shape[-1]))
    return torch.stack([halves & 15, halves >> 4], dim=-2).flatten(-3)


def centred(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes less 8, [..., out, in] in float32 or bfloat16, of bytes uint8 [..., out, in / 2]."""
    if packed.device.type != "cpu":
        return centred_halves(packed, dtype, _half(packed.device, 2 * packed.shape[-1]))
    return unpack_codes(packed).to(dtype).sub_(8)


def centred_halves(packed: Tensor, dtype: torch.dtype, half: int) -> Tensor:
    """`centred` of bytes as `pack_halves` makes them: one look-up for each byte's two codes."""
    pairs = _pairs(packed.device)[packed.int()].view(torch.bfloat16)
    return pairs.view(*packed.shape[:-1], -1, half, 2).transpose(-1, -2).flatten(-3).to(dtype)


@lru_cache
def _pairs(device: torch.device) -> Tensor:
    """Of each byte, its two codes less 8 in bfloat16, as one word: int32 [256]."""
    bytes_ = torch.arange(256, device=device)
    return (torch.stack([bytes_ & 15, bytes_ >> 4], dim=-1) - 8).bfloat16().view(torch.int32).flatten()
