"""Which packed matrices the CPU's own kernels multiply with, and how these see them."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from engine.quant.formats import FP8_BLOCK, Packed
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.grouped_int import BITS


@cache
def cpu_kernels() -> Any:
    """The module `engine.kernels.cpu.packed`, imported by the first matrix on CPU: a GPU needs no numba."""
    return import_module("engine.kernels.cpu.packed")


def own_matrix(packed: Packed) -> tuple[int, Any] | None:
    """The kind and the `Matrices` of a whole matrix on CPU; None where the kernels do not know its format or width."""
    return own_view(packed.format, packed.tensors, packed.shape[1], packed.group)


def own_view(format: str, tensors: Mapping[str, Tensor], columns: int, group: int) -> tuple[int, Any] | None:
    """`own_matrix` of a format's tensors, with or without a leading expert dimension in all of them."""
    if "+" in format or any(tensor.device.type != "cpu" for tensor in tensors.values()):
        return None
    kernels = cpu_kernels()
    if columns % kernels.UNIT:
        return None
    if format in ("int8", "fp8") or format in BITS:
        return _scales_apart(format, tensors, group)
    kind = BLOCK_TYPES.get(format.upper())
    if kind is None or kind.number not in kernels.KINDS:
        return None
    (stored,) = tensors.values()
    return kind.number, kernels.matrix(stored.contiguous())


def _scales_apart(format: str, tensors: Mapping[str, Tensor], group: int) -> tuple[int, Any]:
    kernels = cpu_kernels()
    if format == "int8":
        return kernels.INT8, kernels.matrix(tensors["codes"].contiguous(), tensors["scale"], scale_bytes=2)
    if format in BITS:
        kind = {"int4": kernels.INT4, "int3": kernels.INT3, "int2": kernels.INT2}[format]
        scales = tensors["scales_zeros"]
        across = scales.stride(-3) * scales.itemsize
        codes = tensors["codes"].contiguous()
        return kind, kernels.matrix(codes, scales, scale_bytes=4, group_bytes=across, group=group)
    codes, scale = tensors["weight"].view(torch.uint8).contiguous(), tensors["scale"].contiguous()
    sizes = {"scale_bytes": 4 * scale.shape[-1], "group_bytes": 4, "group": FP8_BLOCK, "scale_rows": FP8_BLOCK}
    return kernels.FP8, kernels.matrix(codes, scale, **sizes)
