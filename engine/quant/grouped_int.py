"""Integer codes of 4, 3 or 2 bits with a scale and a zero for each group of columns: where the bits of a code lie.

w = (code - 2^(bits - 1)) * scale + zero. In files every code lies in row order: the codes of a row are one string of
bits, lowest first, so that 8 codes are as many bytes as a code has bits and byte 0 holds the low bits of code 0. In
memory int3 and int2 lie so too, on every device; int4 is in halves, whose order differs between devices
(`engine.quant.int4`).
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from types import MappingProxyType

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.quant import int4
from engine.quant.int4 import GROUPS

BITS: Mapping[str, int] = MappingProxyType({"int4": 4, "int3": 3, "int2": 2})


def group_size(format: str, columns: int) -> int:
    """The largest group of 128, 64 or 32 that divides `columns`; CheckpointError if none does."""
    for group in GROUPS:
        if columns % group == 0:
            return group
    raise CheckpointError(f"{format} needs input features that are a multiple of 32, not {columns}")


def matrix_bytes(format: str, rows: int, columns: int) -> int:
    """Bytes of a matrix [rows, columns]: its codes, and 4 for the scale and zero of each group."""
    return rows * (columns * BITS[format] // 8 + 4 * (columns // group_size(format, columns)))


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes 0 to 2^bits - 1 [out, in] (any integer type) to bytes uint8 [out, in * bits / 8], as in memory."""
    return int4.pack_codes(codes) if bits == 4 else pack_row_order(codes, bits)


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., out, in] of bytes uint8 [..., out, in * bits / 8] as in memory."""
    return int4.unpack_codes(packed) if bits == 4 else unpack_row_order(packed, bits)


def centred(packed: Tensor, dtype: torch.dtype, bits: int) -> Tensor:
    """Codes less 2^(bits - 1), [..., out, in] in float32 or bfloat16, of bytes as in memory."""
    if bits == 4:
        return int4.centred(packed, dtype)
    return unpack_row_order(packed, bits).to(dtype).sub_(1 << (bits - 1))


def pack_row_order(codes: Tensor, bits: int) -> Tensor:
    """Codes 0 to 2^bits - 1 [..., in] to bytes uint8 [..., in * bits / 8] in row order; 8 divides `in`."""
    eight = codes.to(torch.uint8).reshape(*codes.shape[:-1], -1, 8).unbind(-1)
    made = []
    for byte in range(bits):
        places = [(code, bits * index - 8 * byte) for index, code in enumerate(eight)]
        made.append(reduce(or_, [code << at if at >= 0 else code >> -at for code, at in places if -bits < at < 8]))
    return torch.stack(made, dim=-1).flatten(-2)


def unpack_row_order(packed: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., in] of bytes uint8 [..., in * bits / 8] in row order."""
    each = packed.reshape(*packed.shape[:-1], -1, bits).unbind(-1)
    codes = []
    for index in range(8):
        byte, at = divmod(bits * index, 8)
        code = each[byte] >> at
        if at + bits > 8:
            code = code | (each[byte + 1] << (8 - at))
        codes.append(code & ((1 << bits) - 1))
    return torch.stack(codes, dim=-1).flatten(-2)
