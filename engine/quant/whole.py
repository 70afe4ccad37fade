"""Whole matrices, and stacks of them, dequantized at once to a matmul's dtype: how a GPU reads packed weights.

A GPU gains nothing from tiles that fit a cache of the processor, and loses a launch with each; what is unpacked here is
bounded by `WHOLE_BYTES` alone. Values equal those of `engine.quant.formats.dequantize` rounded to the dtype, once.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import linear

from engine.quant import int4
from engine.quant.formats import FP8_BLOCK, PLAIN, ROW_BLOCK, Packed
from engine.quant.gguf_blocks import BLOCK_TYPES, expand
from engine.quant.gguf_words import in_words, stored_order
from engine.quant.gpu import gpu_kernels

WHOLE_BYTES = 256 << 20
"""Most bytes of a matrix that are unpacked at once."""


def unpack(format: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Weights [..., out, in] in float32 or bfloat16 of a format's tensors with any leading dimensions in common."""
    if "+" not in format:
        return _UNPACKERS[format](tensors, dtype)
    parts = []
    for index, part in enumerate(format.split("+")):
        mark = f"{index}."
        own = {name.removeprefix(mark): tensor for name, tensor in tensors.items() if name.startswith(mark)}
        parts.append(unpack(part, own, dtype))
    joined = torch.cat(parts, dim=-2)
    return joined[..., tensors["order"], :] if "order" in tensors else joined


def multiply(x: Tensor, packed: Packed) -> Tensor:
    """x [T, in] @ W^T in the dtype of `x`, with W unpacked `WHOLE_BYTES` at a time."""
    rows, columns = packed.shape
    step = max(ROW_BLOCK, WHOLE_BYTES // (columns * x.itemsize) // ROW_BLOCK * ROW_BLOCK)
    if rows <= step:
        return _product(x, packed)
    y = x.new_empty(x.shape[0], rows)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        y[:, start:stop] = _product(x, packed.slice_rows(start, stop))
    return y


def _product(x: Tensor, packed: Packed) -> Tensor:
    if packed.format == "int8":  # a scale for each output is cheaper applied to the outputs, and as exact
        return linear(x, packed.tensors["codes"].to(x.dtype)) * packed.tensors["scale"].to(x.dtype)
    return linear(x, unpack(packed.format, packed.tensors, x.dtype))


def _unpack_plain(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    return tensors["weight"].to(dtype)


def _unpack_int8(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    return tensors["codes"].to(dtype).mul_(tensors["scale"].unsqueeze(-1))


def _unpack_fp8(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Every e4m3 value is exact in bfloat16; the product with its float32 scale is rounded as it is stored."""
    weight = tensors["weight"].to(dtype)
    out, columns = weight.shape[-2:]
    scale = tensors["scale"].repeat_interleave(FP8_BLOCK, dim=-1)[..., :columns]
    if out % FP8_BLOCK:
        return weight.mul_(scale.repeat_interleave(FP8_BLOCK, dim=-2)[..., :out, :])
    weight.view(*weight.shape[:-2], -1, FP8_BLOCK, columns).mul_(scale.unsqueeze(-2))
    return weight


def _unpack_int4(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    codes = int4.centred(tensors["codes"], dtype)
    scale, zero = tensors["scales_zeros"].to(dtype).transpose(-2, -3).unsqueeze(-2).unbind(-1)
    grouped = codes.view(*codes.shape[:-1], scale.shape[-2], -1)
    return torch.addcmul(zero, grouped, scale).flatten(-2)


def _unpack_blocks(name: str) -> Callable[[Mapping[str, Tensor], torch.dtype], Tensor]:
    def unpacked(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        blocks = tensors["blocks"]
        kernels = gpu_kernels("blocks") if blocks.device.type == "cuda" and in_words(blocks, name) else None
        if kernels is None:
            return expand(stored_order(blocks, name), BLOCK_TYPES[name]).to(dtype)
        values: Tensor = kernels.unpack(blocks, name, dtype)
        return values

    return unpacked


_UNPACKERS: Mapping[str, Callable[[Mapping[str, Tensor], torch.dtype], Tensor]] = MappingProxyType(
    dict.fromkeys(PLAIN, _unpack_plain)
    | {"int8": _unpack_int8, "int4": _unpack_int4, "fp8": _unpack_fp8}
    | {name: _unpack_blocks(name) for name in BLOCK_TYPES}
)
