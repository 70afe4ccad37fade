"""4-bit codes in the byte order that torch's CPU kernel reads.

`_convert_weight_to_int4pack_for_cpu` lays codes out in blocks of rows: within a block, column after column, two rows
to a byte. How many rows make a block, and which two share a byte, depends on the processor's vector width, so both are
found by packing probes. On other devices codes stay in row order, the even column in the low nibble.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ROW_MULTIPLE = 16  # a condition of the kernel on output features
GROUPS = (128, 64, 32)  # group sizes that the kernel knows and we use, the cheapest in bytes first


@dataclass(frozen=True)
class BlockOrder:
    """`rows` to a block; byte j of a column holds rows 2j and 2j + 1 if `paired`, else rows j and j + rows / 2.

    Rows after the last full block form a shorter block, always paired.
    """

    rows: int
    paired: bool


@lru_cache(maxsize=1)
def block_order() -> BlockOrder:
    """The order of this processor's kernel."""
    odd_columns = (torch.arange(32, dtype=torch.int32) & 1).repeat(64, 1)
    second_row = torch.zeros(64, 32, dtype=torch.int32)
    second_row[1] = 1
    first_odd_byte = int(_convert(odd_columns).nonzero()[0])
    return BlockOrder(rows=2 * first_odd_byte, paired=bool(_convert(second_row)[0] >> 4))


def _convert(codes: Tensor) -> Tensor:
    return torch._convert_weight_to_int4pack_for_cpu(codes.int().contiguous(), 1).flatten()


def pack_codes(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [out, in] (any integer type) to bytes uint8 [out, in / 2], ordered for the codes' device."""
    if codes.device.type == "cpu":
        return _convert(codes).reshape(codes.shape[0], -1)
    return pack_row_order(codes)


def pack_row_order(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [out, in] to bytes uint8 [out, in / 2] in row order: the same on every machine, as files need."""
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.uint8)


def unpack_row_order(packed: Tensor) -> Tensor:
    """Codes uint8 [out, in] of bytes in row order."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)


def unpack_codes(packed: Tensor) -> Tensor:
    """Codes uint8 [out, in] of bytes uint8 [out, in / 2]."""
    if packed.device.type != "cpu":
        return unpack_row_order(packed)
    order, out = block_order(), packed.shape[0]
    full = out // order.rows * order.rows
    parts = [_unpack_blocks(packed[:full], order.rows, order.paired)] if full else []
    if full < out:
        parts.append(_unpack_blocks(packed[full:], out - full, True))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def centred(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes less 8, [..., out, in] in float32 or bfloat16, of bytes uint8 [..., out, in / 2]."""
    if packed.device.type != "cpu":
        return centred_row_order(packed, dtype)
    matrices = packed.reshape(-1, *packed.shape[-2:])
    codes = torch.stack([unpack_codes(matrix) for matrix in matrices])
    return codes.to(dtype).sub_(8).view(*packed.shape[:-1], -1)


def centred_row_order(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """`centred` of bytes in row order: one look-up for each byte's two codes."""
    pairs = _pairs(packed.device)[packed.int()]
    return pairs.view(torch.bfloat16).to(dtype)


@lru_cache
def _pairs(device: torch.device) -> Tensor:
    """Of each byte, its two codes less 8 in bfloat16, as one word: int32 [256]."""
    bytes_ = torch.arange(256, device=device)
    return (torch.stack([bytes_ & 15, bytes_ >> 4], dim=-1) - 8).bfloat16().view(torch.int32).flatten()


def _unpack_blocks(packed: Tensor, rows: int, paired: bool) -> Tensor:
    columns = packed.shape[1] * 2
    bytes_ = packed.reshape(-1, columns, rows // 2).transpose(1, 2)
    low, high = bytes_ & 15, bytes_ >> 4
    codes = torch.stack([low, high], dim=2) if paired else torch.cat([low, high], dim=1)
    return codes.reshape(-1, columns)


def gather_codes(packed: Tensor, ids: Tensor) -> Tensor:
    """Codes uint8 [n, in] of rows `ids` [n], without unpacking the others."""
    if packed.device.type != "cpu":
        return unpack_codes(packed[ids])
    order, (out, half) = block_order(), packed.shape
    full = out // order.rows * order.rows
    block = torch.where(ids < full, ids // order.rows * order.rows, full)
    size = torch.where(ids < full, order.rows, out - full)
    within, paired = ids - block, (ids >= full) | order.paired
    byte = torch.where(paired, within // 2, within % (size // 2))
    high = torch.where(paired, within % 2, within // (size // 2).clamp(min=1))
    columns = torch.arange(2 * half)
    at = (block * half + byte).unsqueeze(1) + columns * (size // 2).unsqueeze(1)
    return (packed.view(-1)[at] >> (4 * high).unsqueeze(1).to(torch.uint8)) & 15
