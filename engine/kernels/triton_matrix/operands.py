"""What the kernels see of a packed matrix: two tensors, and which columns share a scale."""

from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from engine.kernels.block_words import WORDS

FORMATS = ("bf16", "fp8", "int8", "int4")
"""Formats of our own; the kernels take the GGUF block types of `engine.kernels.block_words` too."""

STEP = 128
"""Columns that a kernel takes at a time, but for int4, where it takes a group, and blocks, where it takes a unit."""


@runtime_checkable
class Stored(Protocol):
    """`engine.quant.formats.Packed`, or a stack of such matrices."""

    @property
    def format(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def tensors(self) -> dict[str, Tensor]: ...

    @property
    def group(self) -> int: ...


@dataclass(frozen=True)
class Operands:
    """A matrix [out, in], or a stack [E, out, in], as kernel arguments."""

    format: str
    out: int
    columns: int
    weight: Tensor
    scale: Tensor  # the weight again where the format has no scales
    step: int  # columns of one step of `tiles.product`
    expert_weight: int = 0  # elements from one expert's weight to the next
    expert_scale: int = 0


def operands(stored: object) -> Operands | None:
    """None where the kernels do not know the format, or the width is no multiple of a step."""
    if isinstance(stored, Stored) and stored.format in WORDS:
        return _block_operands(stored.format, stored.shape, stored.tensors["blocks"])
    if not isinstance(stored, Stored) or stored.format not in FORMATS:
        return None
    tensors, (out, columns) = stored.tensors, stored.shape[-2:]
    step = stored.group if stored.format == "int4" else STEP
    if columns % step or not all(tensor.is_contiguous() for tensor in tensors.values()):
        return None
    weight = tensors["weight" if "weight" in tensors else "codes"]
    scale = tensors.get("scale", tensors.get("scales_zeros", weight))
    stacked = len(stored.shape) == 3
    strides = (weight.stride(0), scale.stride(0)) if stacked else (0, 0)
    return Operands(stored.format, out, columns, weight, scale, step, *strides)


def _block_operands(format: str, shape: tuple[int, ...], blocks: Tensor) -> Operands | None:
    """Blocks in words, whose scales lie behind the codes of each row."""
    (out, columns), words = shape[-2:], WORDS[format]
    if columns % words.columns or blocks.shape[-1] != words.row_bytes(columns):
        return None
    if not blocks.is_contiguous() or blocks.data_ptr() % 4:
        return None
    weight = blocks.view(torch.int32)
    strides = (weight.stride(0), weight.stride(0)) if len(shape) == 3 else (0, 0)
    return Operands(format, out, columns, weight, weight, words.columns, *strides)


def halves(stored: object) -> tuple[Operands, Operands] | None:
    """Gate and up where a stack has them in two block types, as `A+B` (see `engine.quant.formats.Packed`)."""
    if not isinstance(stored, Stored) or stored.format.count("+") != 1 or "order" in stored.tensors:
        return None
    known: list[Operands] = []
    for index, format in enumerate(stored.format.split("+")):
        blocks = stored.tensors.get(f"{index}.blocks")
        if format in WORDS and blocks is not None and 2 * blocks.shape[-2] == stored.shape[-2]:
            half = _block_operands(format, (*blocks.shape[:-1], stored.shape[-1]), blocks)
            known += [] if half is None else [half]
    return (known[0], known[1]) if len(known) == 2 else None


def row_step(columns: int) -> int:
    """Columns that a row kernel takes at once: the largest power of two up to 2048 that divides `columns`."""
    return min(2048, columns & -columns)


def early(x: Tensor) -> dict[str, bool]:
    """Launch options that let a kernel start before the one before it has ended (programmatic dependent launch)."""
    return {"EARLY": True, "launch_pdl": True} if x.is_cuda and _starts_early(x.device) else {"EARLY": False}


@cache
def _starts_early(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
