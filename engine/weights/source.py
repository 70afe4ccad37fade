"""What the loader asks of a checkpoint, whatever its container."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.quant.formats import Packed
from engine.quant.linear import PackedExperts
from engine.text.tokenizer import Tokenizer
from engine.weights.layout import TensorSpec

Weight = Packed | PackedExperts | Tensor


class Source(Protocol):
    """A checkpoint open for reading; reads go to the file, nothing is kept."""

    kind: str
    where: str
    config: ModelConfig

    def files(self) -> list[Path]:
        """The files whose bytes are the weights, for hashing; empty when there are none."""

    def types(self) -> dict[str, int]:
        """How many stored tensors there are of each type."""

    def unexpected(self, specs: list[TensorSpec]) -> list[str]:
        """Stored tensors that neither `specs` nor the known skippable ones account for."""

    def read(self, spec: TensorSpec) -> Weight:
        """A tensor as stored: `Packed` for matrices, `PackedExperts` for stacks, float32 for all else.

        Values are canonical: a norm is the factor that multiplies, llama's q and k rows are in half-rotation order,
        `A_log` is a logarithm. Raises CheckpointError for a missing tensor or a wrong shape.
        """

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""

    def save_tokenizer(self, directory: Path) -> None:
        """Write what `PackedSource` needs to make the same tokenizer."""

    def extras(self) -> dict[str, Any]:
        """What else identifies the source (a seed, the shape's name)."""


def check_shape(where: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise a CheckpointError when a stored tensor's shape is not what the configuration says."""
    if found != wanted:
        raise CheckpointError(f"{where}: tensor {name} has shape {list(found)}; its configuration says {list(wanted)}")
