"""A linear layer over a packed matrix: one matmul per format, chosen from a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from engine.kernels.rows import take_rows
from engine.quant import fp8_dynamic, gguf_words, whole
from engine.quant.formats import PLAIN, ROW_BLOCK, Packed, dequantize, repack, row_parts, tile_rows
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.gpu import gpu_kernels, gpu_matrix, takes
from engine.quant.own import cpu_kernels, own_matrix, own_view

FLOAT32_ROWS = 64
"""Rows of activations up to which the CPU's own kernels, which read packed weights and work in float32, win over
unpacking for torch's bfloat16 product; measured on two cores with AVX-512."""


class QuantizedLinear:
    """y = x @ W^T (+ bias) with W [out, in] packed in any format.

    Products are accumulated in float32 or better and come out in `x.dtype`; weights are never held unpacked, but for
    one tile at a time.
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        self.packed = packed
        self.bias = bias
        self.out_features, self.in_features = packed.shape
        self.own = own_matrix(packed)
        self.gpu = gpu_matrix(packed)
        self._matmul = _matmul_for(packed)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] in float32 or bfloat16 to [T, out] in the same dtype."""
        if self.own is not None and (x.dtype == torch.float32 or x.shape[0] <= FLOAT32_ROWS):
            kind, matrix = self.own
            y: Tensor = cpu_kernels().matmul(x.float(), matrix, kind)[0].to(x.dtype)
        elif self.gpu is not None and takes(x):
            y = gpu_kernels("linear").multiply(x, self.gpu)
        else:
            y = self._matmul(x, self.packed)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows `ids` int64 [T] of W, as for an embedding lookup: [T, in] in `dtype`."""
        if self.gpu is not None and self.packed.format in BLOCK_TYPES:
            return whole.unpack(self.packed.format, {"blocks": self.packed.tensors["blocks"][ids]}, dtype)
        return dequantize(self.packed, ids).to(dtype)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True)
class PackedExperts:
    """E matrices [out, in] of one format; every tensor of `Packed` with a leading expert dimension."""

    format: str
    shape: tuple[int, int, int]
    tensors: dict[str, Tensor]
    group: int = 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def own(self) -> tuple[tuple[int, Any], ...] | None:
        """The stack as the CPU's own kernels know it, or its two halves of rows, if they do."""
        formats = self.format.split("+")
        parts = [self.tensors] if len(formats) == 1 else [_numbered(self.tensors, i) for i in range(len(formats))]
        views = [own_view(f, part, self.shape[2], self.group) for f, part in zip(formats, parts, strict=True)]
        known = tuple(view for view in views if view is not None)
        halves = len(known) == 1 or [2 * matrices.rows[0] for _, matrices in known] == 2 * [self.shape[1]]
        return known if len(known) == len(views) and halves else None

    def expert_packed(self, index: int) -> Packed:
        """One expert's matrix, without a copy."""
        views = {name: tensor[index] for name, tensor in self.tensors.items()}
        return Packed(self.format, self.shape[1:], views, self.group)

    def expert(self, index: int) -> QuantizedLinear:
        """One expert's linear layer, without a copy."""
        return QuantizedLinear(self.expert_packed(index))

    def gather(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Experts `ids` int64 [n], dequantized to float32 or bfloat16 [n, out, in], on their device alone."""
        chosen = {name: take_rows(tensor, ids) for name, tensor in self.tensors.items()}
        return whole.unpack(self.format, chosen, dtype)

    def to(self, device: str | torch.device) -> "PackedExperts":
        """The same experts on another device."""
        target, own = torch.device(device), next(iter(self.tensors.values())).device
        if target.type == own.type and target.index in (None, own.index):
            return self
        if self.format == "int4":
            return stack_experts([self.expert_packed(index).to(device) for index in range(self.shape[0])])
        return replace(self, tensors=gguf_words.move(self.tensors, self.format, target))


def _numbered(tensors: Mapping[str, Tensor], part: int) -> dict[str, Tensor]:
    """A row part's own tensors; see `Packed`."""
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}


def stack_experts(experts: list[Packed]) -> PackedExperts:
    """Experts of one shape and format in one set of tensors."""
    first = experts[0]
    tensors = {name: torch.stack([expert.tensors[name] for expert in experts]) for name in first.tensors}
    return PackedExperts(first.format, (len(experts), *first.shape), tensors, first.group)


def repack_experts(stored: PackedExperts, format: str) -> PackedExperts:
    """`stored` in another format: as one tall matrix where row blocks do not straddle experts, else one by one."""
    if format in ("as-stored", stored.format):
        return stored
    count, out, columns = stored.shape
    if out % ROW_BLOCK or set(stored.tensors) - {"weight", "blocks"} or stored.format == "fp8":
        return stack_experts([repack(stored.expert_packed(index), format) for index in range(count)])
    flat = {name: tensor.flatten(0, 1) for name, tensor in stored.tensors.items()}
    tall = repack(Packed(stored.format, (count * out, columns), flat, stored.group), format)
    tensors = {name: _by_expert(name, tensor, count) for name, tensor in tall.tensors.items()}
    return PackedExperts(format, stored.shape, tensors, tall.group)


def _by_expert(name: str, tensor: Tensor, count: int) -> Tensor:
    """A tall matrix's tensor with a leading expert dimension."""
    if name != "scales_zeros":
        return tensor.reshape(count, -1, *tensor.shape[1:])
    return tensor.reshape(tensor.shape[0], count, -1, 2).transpose(0, 1).contiguous()


def join_experts(parts: list[PackedExperts]) -> PackedExperts:
    """Experts whose rows are those of `parts` one after another; parts are plain or GGUF blocks."""
    shape = (parts[0].shape[0], sum(part.shape[1] for part in parts), parts[0].shape[2])
    if len({part.format for part in parts}) == 1:
        tensors = {name: torch.cat([part.tensors[name] for part in parts], dim=1) for name in parts[0].tensors}
        return PackedExperts(parts[0].format, shape, tensors)
    unlike = {f"{i}.{name}": tensor for i, part in enumerate(parts) for name, tensor in part.tensors.items()}
    return PackedExperts("+".join(part.format for part in parts), shape, unlike)


def _matmul_for(packed: Packed) -> Callable[[Tensor, Packed], Tensor]:
    if "+" in packed.format:
        return _joined
    if fp8_dynamic.is_supported(packed):
        return fp8_dynamic.multiply
    if packed.device.type != "cpu" and packed.format not in ("f32", "bf16"):
        return whole.multiply
    return _MATMULS[packed.format]


def _joined(x: Tensor, packed: Packed) -> Tensor:
    parts, order = row_parts(packed)
    y = torch.cat([QuantizedLinear(part)(x) for part in parts], dim=1)
    return y if order is None else y[:, order]


def _plain(x: Tensor, packed: Packed) -> Tensor:
    weight = packed.tensors["weight"]
    if weight.dtype == x.dtype:
        return linear(x, weight)
    if weight.dtype == torch.float32:
        return linear(x.float(), weight).to(x.dtype)
    return _tiled(x, packed)


def _int8(x: Tensor, packed: Packed) -> Tensor:
    scale = packed.tensors["scale"].to(x.dtype)
    return _over_tiles(x, packed, lambda tile: tile.tensors["codes"].to(x.dtype)) * scale


def _tiled(x: Tensor, packed: Packed) -> Tensor:
    return _over_tiles(x, packed, lambda tile: _unpacked(tile).to(x.dtype))


def _unpacked(tile: Packed) -> Tensor:
    own = own_matrix(tile)
    if own is None:
        return dequantize(tile)
    kind, matrix = own
    weights: Tensor = cpu_kernels().expand(matrix, kind, tile.shape[1])
    return weights


def _over_tiles(x: Tensor, packed: Packed, unpack: Callable[[Packed], Tensor]) -> Tensor:
    """x @ W^T with W unpacked a tile of rows at a time."""
    rows, step = packed.shape[0], tile_rows(packed.shape[1])
    if rows <= step:
        return linear(x, unpack(packed))
    y = x.new_empty(x.shape[0], rows)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        torch.mm(x, unpack(packed.slice_rows(start, stop)).t(), out=y[:, start:stop])
    return y


_MATMULS: Mapping[str, Callable[[Tensor, Packed], Tensor]] = MappingProxyType(
    dict.fromkeys(PLAIN, _plain) | {"int8": _int8, "int4": _tiled, "fp8": _tiled} | dict.fromkeys(BLOCK_TYPES, _tiled)
)
