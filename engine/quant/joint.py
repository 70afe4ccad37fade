"""Several projections of one input."""

import torch
from torch import Tensor

from engine.quant.linear import QuantizedLinear
from engine.quant.own import cpu_kernels


class JointLinear:
    """Linear layers that read the same rows: one pass of the CPU's threads over all matrices of one format.

    A pass of its own costs a small matrix as much as its product does.
    """

    def __init__(self, *linears: QuantizedLinear) -> None:
        self.linears = linears
        own = [linear.own for linear in linears if linear.own is not None and linear.bias is None]
        alike = len({(kind, matrix[2:]) for kind, matrix in own}) == 1
        self._own = tuple(matrix for _, matrix in own) if alike and len(own) == len(linears) else ()
        self._kind = own[0][0] if self._own else None

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [T, in] to one [T, out] for each layer, in the dtype of `x`."""
        if not self._own or x.dtype != torch.float32:
            return tuple([linear(x) for linear in self.linears])
        results: tuple[Tensor, ...] = cpu_kernels().matmul(x, self._own, self._kind)
        return results
