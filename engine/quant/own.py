"""Which packed matrices the CPU's own kernels multiply with, and how these see them."""

from functools import cache
from importlib import import_module
from typing import Any

from engine.quant.formats import Packed
from engine.quant.gguf_blocks import BLOCK_TYPES


@cache
def cpu_kernels() -> Any:
    """The module `engine.kernels.cpu.packed`, imported by the first matrix on CPU: a GPU needs no numba."""
    return import_module("engine.kernels.cpu.packed")


def own_matrix(packed: Packed) -> tuple[int, Any] | None:
    """The kind and the `Matrix` of a whole matrix on CPU; None where the kernels do not know its format or width."""
    if packed.device.type != "cpu" or "+" in packed.format:
        return None
    kernels, tensors = cpu_kernels(), packed.tensors
    if packed.shape[1] % kernels.UNIT:
        return None
    if packed.format == "int8":
        return kernels.INT8, kernels.matrix(tensors["codes"], tensors["scale"], 2)
    if packed.format == "int4":
        return kernels.INT4, kernels.matrix(tensors["codes"], tensors["scales_zeros"], 4, packed.group)
    kind = BLOCK_TYPES.get(packed.format.upper())
    if kind is None or kind.number not in kernels.KINDS:
        return None
    (stored,) = tensors.values()
    return kind.number, kernels.matrix(stored)
