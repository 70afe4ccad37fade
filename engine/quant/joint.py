"""Several projections of one input."""

from typing import Any

import torch
from torch import Tensor

from engine.quant.formats import Packed, join_rows
from engine.quant.gpu import takes
from engine.quant.linear import QuantizedLinear
from engine.quant.own import cpu_kernels

ALIGNED = 8
"""Outputs in multiples of which a GPU's library multiplies at full speed; 513 take it 10 times as long as 512."""


class JointLinear:
    """Linear layers that read the same rows: one pass of the CPU's threads over all matrices of one format.

    A pass of its own costs a small matrix as much as its product does. On a GPU they become one matrix, of which the
    layers given keep views.
    """

    def __init__(self, *linears: QuantizedLinear) -> None:
        self.linears = linears
        own = [linear.own for linear in linears if linear.own is not None and linear.bias is None]
        self.own: tuple[int, Any] | None = None
        if len(own) == len(linears) and len({kind for kind, _ in own}) == 1:
            self.own = own[0][0], cpu_kernels().join(tuple(matrices for _, matrices in own))
        self.joined = _joined(linears)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [T, in] to one [T, out] for each layer, in the dtype of `x`; on a GPU views of one result."""
        if self.joined is not None and self._joins(x, self.joined):
            return torch.split(self.joined(x), [linear.out_features for linear in self.linears], dim=1)
        if self.own is None or x.dtype != torch.float32:
            return tuple([linear(x) for linear in self.linears])
        kind, matrices = self.own
        results: tuple[Tensor, ...] = cpu_kernels().matmul(x, matrices, kind)
        return results

    @staticmethod
    def _joins(x: Tensor, joined: QuantizedLinear) -> bool:
        return (joined.gpu is not None and takes(x)) or joined.out_features % ALIGNED == 0


def _joined(linears: tuple[QuantizedLinear, ...]) -> QuantizedLinear | None:
    """One layer with the rows of all on a GPU, whose weights take the place of theirs; None where they cannot join."""
    parts = [linear.packed for linear in linears]
    if any(part.device.type != "cuda" for part in parts) or any(linear.bias is not None for linear in linears):
        return None
    whole = join_rows(parts)
    if "+" in whole.format:
        return None
    _share(parts, whole)
    for linear in linears:
        linear.gpu = None
    return QuantizedLinear(whole)


def _share(parts: list[Packed], whole: Packed) -> None:
    """Let the parts' tensors be views of the whole's, so that the weights are in memory once."""
    start = 0
    for part in parts:
        part.tensors.update(whole.slice_rows(start, start + part.shape[0]).tensors)
        start += part.shape[0]
