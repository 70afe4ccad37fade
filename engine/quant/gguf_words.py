"""GGUF blocks to and from the order of `engine.kernels.block_words`, in which a GPU has them: exactly, either way."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.kernels.block_words import CODE_BYTES, WORDS, Words
from engine.quant.gguf_blocks import BLOCK_TYPES, six_bit_scales

CHUNK_BYTES = 64 << 20
"""Bytes that are reordered at once."""


def device_order(blocks: Tensor, name: str) -> Tensor:
    """Rows of blocks uint8 [..., row_bytes] in words; as they are where words do not suit their type or width."""
    kind, words = BLOCK_TYPES[name], WORDS.get(name)
    columns = blocks.shape[-1] // kind.bytes * kind.width
    if words is None or columns % words.columns:
        return blocks
    ordered = blocks.new_zeros(*blocks.shape[:-1], words.row_bytes(columns))
    for rows, target in _chunks(blocks, ordered):
        units = rows.reshape(len(rows), columns // words.columns, -1)
        *codes, scales = _TO_WORDS[name](units)
        joined = torch.cat([part.flatten(1) for part in (*codes, _by_turns(scales, 2, words))], dim=1)
        target[:, : joined.shape[1]] = joined
    return ordered


def file_order(blocks: Tensor, name: str) -> Tensor:
    """What `device_order` was given."""
    if not in_words(blocks, name):
        return blocks
    words = WORDS[name]
    count = blocks.shape[-1] // words.bytes
    sizes = [count * size for size in (CODE_BYTES, words.upper, words.scales)]
    ordered = blocks.new_empty(*blocks.shape[:-1], BLOCK_TYPES[name].row_bytes(count * words.columns))
    for rows, target in _chunks(blocks, ordered):
        parts = torch.split(rows[:, : sum(sizes)], sizes, dim=1)
        codes, upper, scales = (part.reshape(len(rows), count, -1) for part in parts)
        scales = _by_turns(scales, words.columns // 64, words)
        target.copy_(_FROM_WORDS[name](codes, upper, scales).flatten(1))
    return ordered


def stored_order(blocks: Tensor, name: str) -> Tensor:
    """Blocks as files have them, of blocks as their device does: on CPU as in files, elsewhere in words if they can."""
    return blocks if blocks.device.type == "cpu" else file_order(blocks, name)


def move(tensors: Mapping[str, Tensor], format: str, device: torch.device) -> dict[str, Tensor]:
    """Tensors of a matrix or a stack (see `engine.quant.formats.Packed`) on a device, blocks in its order."""
    kinds = {"blocks": format} | {f"{index}.blocks": part for index, part in enumerate(format.split("+"))}
    moved = {}
    for name, tensor in tensors.items():
        stays = tensor.device.type == device.type or name not in kinds
        if stays or device.type != "cpu":
            target = tensor.to(device)
            moved[name] = target if stays else device_order(target, kinds[name])
        else:
            moved[name] = file_order(tensor, kinds[name]).to(device)
    return moved


def in_words(blocks: Tensor, name: str) -> bool:
    """Whether rows of blocks on a GPU are in words, as they are wherever `device_order` can have them so."""
    words = WORDS.get(name)
    units = blocks.shape[-1] // words.bytes if words else 0
    return words is not None and units > 0 and blocks.shape[-1] == words.row_bytes(units * words.columns)


def _chunks(source: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The rows of both, flat and some at a time."""
    source, target = source.flatten(0, -2), target.flatten(0, -2)
    step = max(1, CHUNK_BYTES // source.shape[1])
    return list(zip(torch.split(source, step), torch.split(target, step), strict=True))


def _split(tensor: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """`tensor.unflatten`, which has no types."""
    return tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])


def _by_turns(scales: Tensor, parts: int, words: Words) -> Tensor:
    """Scales [n, u, bytes] with the two bytes of 32 columns reordered: the first of all `parts`, the second, ..."""
    size = words.columns // 16
    pairs = scales[..., :size].reshape(*scales.shape[:2], parts, -1, 2)
    return torch.cat([pairs.transpose(2, 3).flatten(2), scales[..., size:]], dim=2)


def _turned(bytes_: Tensor, runs: int) -> Tensor:
    """Bytes [n, u, s, runs · m] to [n, u, s · m · runs]: byte j of all runs side by side."""
    return _split(bytes_, 3, (runs, -1)).transpose(3, 4).flatten(2)


def _nibble_words(codes: Tensor) -> Tensor:
    """4-bit codes [n, u, 8, 32] in column order to words [n, u, 128]: column 4·p + j to bits 4·p of word j."""
    halves = _split(codes, 3, (4, 2, 4))
    return _turned((halves[..., 0, :] | (halves[..., 1, :] << 4)).flatten(3), 4)


def _nibble_codes(words: Tensor) -> Tensor:
    """The way back from `_nibble_words`."""
    bytes_ = words.reshape(*words.shape[:2], 8, 4, 4).transpose(3, 4)
    return torch.stack([bytes_ & 15, bytes_ >> 4], dim=4).flatten(3)


def _q8_0_to_words(units: Tensor) -> tuple[Tensor, ...]:
    blocks = _split(units, 2, (4, 34))
    return _turned(blocks[..., 2:], 4), blocks[..., :2].flatten(2)


def _q8_0_from_words(codes: Tensor, _: Tensor, scales: Tensor) -> Tensor:
    values = _split(_turned(_split(codes, 2, (4, 32)), 8), 2, (4, 32))
    return torch.cat([_split(scales, 2, (4, 2)), values], dim=3).flatten(2)


def _q4_0_to_words(units: Tensor) -> tuple[Tensor, ...]:
    blocks = _split(units, 2, (8, 18))
    codes = torch.cat([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], dim=3)
    return _nibble_words(codes), blocks[..., :2].flatten(2)


def _q4_0_from_words(codes: Tensor, _: Tensor, scales: Tensor) -> Tensor:
    single = _nibble_codes(codes)
    bytes_ = single[..., :16] | (single[..., 16:] << 4)
    return torch.cat([_split(scales, 2, (8, 2)), bytes_], dim=3).flatten(2)


def _affine_scales(units: Tensor) -> Tensor:
    """d, dmin and 12 bytes of a unit to scales and minima by turns, then d and dmin: [n, u, 20]."""
    scales, minima = six_bit_scales(units[..., 4:16].flatten(0, 1))
    pairs = torch.stack([scales, minima], dim=2).reshape(*units.shape[:2], 16)
    return torch.cat([pairs, units[..., :4]], dim=2)


def _affine_head(scales: Tensor) -> Tensor:
    """The way back from `_affine_scales`: [n, u, 16]."""
    scale, least = _split(scales[..., :16], 2, (8, 2)).unbind(3)
    first = scale[..., :4] | ((scale[..., 4:] & 48) << 2)
    second = least[..., :4] | ((least[..., 4:] & 48) << 2)
    mixed = (scale[..., 4:] & 15) | (least[..., 4:] << 4)
    return torch.cat([scales[..., 16:], first, second, mixed], dim=2)


def _affine_codes(bytes_: Tensor) -> Tensor:
    """Bytes [n, u, 128] of Q4_K and Q5_K to 4-bit codes [n, u, 8, 32]: of 32 bytes all low ones, then all high ones."""
    groups = _split(bytes_, 2, (4, 32))
    return torch.stack([groups & 15, groups >> 4], dim=3).flatten(2, 3)


def _affine_bytes(codes: Tensor) -> Tensor:
    """The way back from `_affine_codes`."""
    return (codes[:, :, 0::2] | (codes[:, :, 1::2] << 4)).flatten(2)


def _q4_k_to_words(units: Tensor) -> tuple[Tensor, ...]:
    return _nibble_words(_affine_codes(units[..., 16:])), _affine_scales(units)


def _q4_k_from_words(codes: Tensor, _: Tensor, scales: Tensor) -> Tensor:
    return torch.cat([_affine_head(scales), _affine_bytes(_nibble_codes(codes))], dim=2)


def _q5_k_to_words(units: Tensor) -> tuple[Tensor, ...]:
    """Bit s of byte l of the upper ones is that of column 32·s + l."""
    bits = (units[..., 16:48].unsqueeze(2) >> _counted(8, units)) & 1
    by_word = (_split(bits, 3, (8, 4)) << _counted(8, units)).sum(3, dtype=torch.uint8)
    return _nibble_words(_affine_codes(units[..., 48:])), by_word.flatten(2), _affine_scales(units)


def _q5_k_from_words(codes: Tensor, upper: Tensor, scales: Tensor) -> Tensor:
    bits = (_split(upper, 2, (8, 1, 4)) >> _counted(8, upper)) & 1
    by_column = (bits.flatten(3) << _counted(8, upper)).sum(2, dtype=torch.uint8)
    return torch.cat([_affine_head(scales), by_column, _affine_bytes(_nibble_codes(codes))], dim=2)


def _counted(count: int, like: Tensor) -> Tensor:
    """Numbers 0 to `count` - 1 as uint8 [count, 1], to shift by."""
    return torch.arange(count, dtype=torch.uint8, device=like.device).unsqueeze(1)


def _q6_k_to_words(units: Tensor) -> tuple[Tensor, ...]:
    """Of 128 columns 64 bytes have all low codes, then all high ones, and each of 32 bytes 2 bits, 32 columns apart."""
    bytes_, fields = _split(units[..., :128], 2, (2, 1, 64)), _split(units[..., 128:192], 2, (2, 1, 32))
    codes = torch.cat([bytes_ & 15, bytes_ >> 4], dim=3).reshape(*units.shape[:2], 8, 32)
    bits = ((fields >> (2 * _counted(4, units))) & 3).reshape(*units.shape[:2], 8, 2, 4, 4)
    by_word = (bits << (2 * _counted(4, units))).sum(4, dtype=torch.uint8)  # [n, u, 8, byte, j]
    zeros = torch.zeros_like(units[..., :2])
    return _nibble_words(codes), by_word.transpose(3, 4).flatten(2), torch.cat([units[..., 192:], zeros], dim=2)


def _q6_k_from_words(codes: Tensor, upper: Tensor, scales: Tensor) -> Tensor:
    halves = _nibble_codes(codes).reshape(*codes.shape[:2], 2, 2, 64)
    by_word = _split(upper, 2, (8, 4, 2)).transpose(3, 4).unsqueeze(4)  # [n, u, 8, byte, 1, j]
    bits = ((by_word >> (2 * _counted(4, upper))) & 3).reshape(*codes.shape[:2], 2, 4, 32)
    fields = (bits << (2 * _counted(4, upper))).sum(3, dtype=torch.uint8)
    bytes_ = halves[..., 0, :] | (halves[..., 1, :] << 4)
    return torch.cat([bytes_.flatten(2), fields.flatten(2), scales[..., :18]], dim=2)


_TO_WORDS = {
    "Q4_0": _q4_0_to_words,
    "Q8_0": _q8_0_to_words,
    "Q4_K": _q4_k_to_words,
    "Q5_K": _q5_k_to_words,
    "Q6_K": _q6_k_to_words,
}
_FROM_WORDS = {
    "Q4_0": _q4_0_from_words,
    "Q8_0": _q8_0_from_words,
    "Q4_K": _q4_k_from_words,
    "Q5_K": _q5_k_from_words,
    "Q6_K": _q6_k_from_words,
}
