"""GGUF block types: raw bytes to float32, vectorised in torch.

A row of a quantized GGUF tensor is a sequence of blocks of `width` weights in `bytes` bytes; layouts are those of the
ggml specification (ggml-common.h, "block_*" structures). Every function takes blocks uint8 [n, bytes] and returns
float32 [n, width], rounding exactly as the specification's reference does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of every block, as float32 [n, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """4-bit codes uint8 [n, 2 * bytes]: per `group` bytes first all low nibbles, then all high ones."""
    bytes_ = packed.reshape(packed.shape[0], -1, 1, group)
    return torch.cat([bytes_ & 15, bytes_ >> 4], dim=2).reshape(packed.shape[0], -1)


def _nibble_values(packed: Tensor, group: int) -> Tensor:
    """What `_nibbles` gives, as float32, without a copy on the way."""
    bytes_ = packed.reshape(packed.shape[0], -1, group)
    values = torch.empty(*bytes_.shape[:2], 2, group, device=packed.device)
    values[:, :, 0] = bytes_ & 15
    values[:, :, 1] = bytes_ >> 4
    return values.reshape(packed.shape[0], -1)


def _bit_fields(packed: Tensor, group: int, width: int) -> Tensor:
    """Codes of `width` bits uint8: per `group` bytes first all lowest fields, then the next ones up."""
    bytes_ = packed.reshape(packed.shape[0], -1, 1, group)
    fields = [(bytes_ >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)]
    return torch.cat(fields, dim=2).reshape(packed.shape[0], -1)


def _float16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float16).float()


def _bfloat16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.bfloat16).float()


def _float32(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _q4_0(blocks: Tensor) -> Tensor:
    return _nibble_values(blocks[:, 2:], 16).sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibble_values(blocks[:, 4:], 16).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _fifth_bits(packed: Tensor) -> Tensor:
    """Bit i of 4 little-endian bytes as 16 for weight i: uint8 [n, 32]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (((packed.unsqueeze(-1) >> shifts) & 1) << 4).reshape(packed.shape[0], 32)


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return codes.float().sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return codes.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _iq4_nl(blocks: Tensor) -> Tensor:
    levels = torch.tensor(
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], device=blocks.device
    ).float()
    return levels[_nibbles(blocks[:, 2:], 16).int()] * _half(blocks, 0)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, codes = blocks[:, :16], _bit_fields(blocks[:, 16:80], 32, 2).reshape(-1, 16, 16).float()
    step = (_half(blocks, 80) * (scales & 15).float()).unsqueeze(-1)
    least = (_half(blocks, 82) * (scales >> 4).float()).unsqueeze(-1)
    return codes.mul_(step).sub_(least).reshape(-1, 256)


def _q3_k(blocks: Tensor) -> Tensor:
    high, packed = blocks[:, 96:104], blocks[:, 104:108].unsqueeze(1)
    low_bits = torch.cat([high & 15, high >> 4], dim=1)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).reshape(1, 4, 1)
    high_bits = ((packed >> shifts) & 3).reshape(-1, 16)
    scales = (low_bits | (high_bits << 4)).to(torch.int8) - 32
    codes = _bit_fields(blocks[:, 32:96], 32, 2).to(torch.int8)
    absent = 1 - _bit_fields(blocks[:, :32], 32, 1).to(torch.int8)
    step = (_half(blocks, 108) * scales.float()).unsqueeze(-1)
    return (codes - 4 * absent).reshape(-1, 16, 16).float().mul_(step).reshape(-1, 256)


def six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of the 8 sub-blocks of Q4_K and Q5_K from 12 bytes: uint8 [n, 8] each."""
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (mixed & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (mixed >> 4) | ((second >> 2) & 48)], dim=1)
    return scales, minima


def _affine_sub_blocks(blocks: Tensor, values: Tensor) -> Tensor:
    scales, minima = six_bit_scales(blocks[:, 4:16])
    step = (_half(blocks, 0) * scales.float()).unsqueeze(-1)
    least = (_half(blocks, 2) * minima.float()).unsqueeze(-1)
    return values.reshape(-1, 8, 32).mul_(step).sub_(least).reshape(-1, 256)


def _q4_k(blocks: Tensor) -> Tensor:
    return _affine_sub_blocks(blocks, _nibble_values(blocks[:, 16:], 32))


def _q5_k(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 48:], 32) | (_bit_fields(blocks[:, 16:48], 32, 1) << 4)
    return _affine_sub_blocks(blocks, codes.float())


def _q6_k(blocks: Tensor) -> Tensor:
    codes = (_nibbles(blocks[:, :128], 64) | (_bit_fields(blocks[:, 128:192], 32, 2) << 4)).to(torch.int8) - 32
    step = (_half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()).unsqueeze(-1)
    return codes.reshape(-1, 16, 16).float().mul_(step).reshape(-1, 256)


@dataclass(frozen=True)
class BlockType:
    """One GGUF tensor type: its number in the file, weights and bytes per block, and how to expand blocks."""

    name: str
    number: int
    width: int
    bytes: int
    expand: Callable[[Tensor], Tensor]

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights; `columns` is a multiple of `width`."""
        return columns // self.width * self.bytes


_TYPES = (
    BlockType("F32", 0, 1, 4, _float32),
    BlockType("F16", 1, 1, 2, _float16),
    BlockType("Q4_0", 2, 32, 18, _q4_0),
    BlockType("Q4_1", 3, 32, 20, _q4_1),
    BlockType("Q5_0", 6, 32, 22, _q5_0),
    BlockType("Q5_1", 7, 32, 24, _q5_1),
    BlockType("Q8_0", 8, 32, 34, _q8_0),
    BlockType("Q2_K", 10, 256, 84, _q2_k),
    BlockType("Q3_K", 11, 256, 110, _q3_k),
    BlockType("Q4_K", 12, 256, 144, _q4_k),
    BlockType("Q5_K", 13, 256, 176, _q5_k),
    BlockType("Q6_K", 14, 256, 210, _q6_k),
    BlockType("IQ4_NL", 20, 32, 18, _iq4_nl),
    BlockType("BF16", 30, 1, 2, _bfloat16),
)
BLOCK_TYPES: Mapping[str, BlockType] = MappingProxyType({kind.name: kind for kind in _TYPES})


def expand(blocks: Tensor, kind: BlockType) -> Tensor:
    """Dequantize rows of blocks, uint8 [..., row_bytes], to float32 [..., columns]."""
    leading, columns = blocks.shape[:-1], blocks.shape[-1] // kind.bytes * kind.width
    return kind.expand(blocks.contiguous().reshape(-1, kind.bytes)).reshape(*leading, columns)
