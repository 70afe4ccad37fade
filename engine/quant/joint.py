"""Several projections of one input."""

from typing import Any

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
        self.own: tuple[int, Any] | None = None
        if len(own) == len(linears) and len({kind for kind, _ in own}) == 1:
            self.own = own[0][0], cpu_kernels().join(tuple(matrices for _, matrices in own))

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [T, in] to one [T, out] for each layer, in the dtype of `x`."""
        if self.own is None or x.dtype != torch.float32:
            return tuple([linear(x) for linear in self.linears])
        kind, matrices = self.own
        results: tuple[Tensor, ...] = cpu_kernels().matmul(x, matrices, kind)
        return results
