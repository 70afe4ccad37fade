"""The dense half of a layer: a gated MLP, as llama's layers and the shared expert have it."""

from torch import Tensor

from engine.kernels.ops import Kernels
from engine.model.scope import Scope


class DenseMLP:
    """`down(silu(gate(x)) · up(x))`."""

    def __init__(self, scope: Scope, kernels: Kernels) -> None:
        self.kernels = kernels
        self.gate_up, self.down = scope.joint("gate_proj", "up_proj"), scope.linear("down_proj")

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden] in the dtype of `x`."""
        return self.kernels.gated_mlp(x, self.gate_up, self.down)
