"""A checkpoint's weights as one module sees them: by names below its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from engine.errors import CheckpointError
from engine.quant.formats import Packed
from engine.quant.joint import JointLinear
from engine.quant.linear import PackedExperts, QuantizedLinear

Weights = Mapping[str, Packed | PackedExperts | Tensor]


@dataclass(frozen=True)
class Scope:
    """The weights whose names start with `name`; what is absent or of another kind is a CheckpointError naming it."""

    weights: Weights
    name: str = ""

    def below(self, part: str) -> "Scope":
        return Scope(self.weights, self.full(part))

    def full(self, part: str) -> str:
        return f"{self.name}.{part}" if self.name else part

    def has(self, part: str) -> bool:
        """Whether there is a weight under its whole name."""
        return self.full(part) in self.weights

    def tensor(self, part: str) -> Tensor:
        """An unquantized weight under its whole name, e.g. "norm.weight"."""
        found = self.weights.get(self.full(part))
        if not isinstance(found, Tensor):
            raise CheckpointError(f"the checkpoint has no unquantized tensor {self.full(part)}")
        return found

    def linear(self, part: str) -> QuantizedLinear:
        """The projection `part`, e.g. "q_proj", with its bias if the checkpoint has one."""
        packed = self.weights.get(self.full(f"{part}.weight"))
        if not isinstance(packed, Packed):
            raise CheckpointError(f"the checkpoint has no tensor {self.full(part)}.weight")
        bias = self.tensor(f"{part}.bias") if self.full(f"{part}.bias") in self.weights else None
        return QuantizedLinear(packed, bias)

    def joint(self, *parts: str) -> JointLinear:
        """Projections of one input, e.g. "gate_proj" and "up_proj"."""
        return JointLinear(*map(self.linear, parts))

    def experts(self, part: str) -> PackedExperts:
        """A stack of expert matrices, e.g. "gate_up_proj"."""
        found = self.weights.get(self.full(part))
        if not isinstance(found, PackedExperts):
            raise CheckpointError(f"the checkpoint has no stack of experts {self.full(part)}")
        return found
