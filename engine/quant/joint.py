"""Several projections of one input."""

import numpy as np
import torch
from torch import Tensor

from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.linear import QuantizedLinear, cpu_kernels, runs_packed


class JointLinear:
    """Linear layers that read the same rows: one pass of the CPU's threads over all matrices of one format.

    A pass of its own costs a small matrix as much as its product does.
    """

    def __init__(self, *linears: QuantizedLinear) -> None:
        self.linears = linears
        formats = {linear.packed.format for linear in linears}
        together = len(formats) == 1 and all(
            linear.bias is None and runs_packed(linear.packed.device, linear.packed) for linear in linears
        )
        self._kind = BLOCK_TYPES[formats.pop().upper()].number if together else None
        self._rows = tuple(_bytes(linear) for linear in linears) if together else ()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [T, in] to one [T, out] for each layer, in the dtype of `x`."""
        if self._kind is None or x.dtype != torch.float32:
            return tuple(linear(x) for linear in self.linears)
        results: tuple[Tensor, ...] = cpu_kernels().matmul_each(x, self._rows, self._kind)
        return results


def _bytes(linear: QuantizedLinear) -> np.ndarray:
    (stored,) = linear.packed.tensors.values()
    return stored.view(torch.uint8).numpy()
