"""What all layers of one forward pass share, computed once from the batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.cache.tensors import CacheTensors
from engine.kernels.ops import Kernels
from engine.model.batch import Batch


@dataclass(frozen=True)
class StatePart:
    """Rows of a step whose recurrent state advances in one way: by single tokens, or by runs of several."""

    rows: slice | Tensor
    slots: Tensor  # [B'] int64
    plan: Any = None
    """The kernels' plan of the runs; None for single tokens."""


@dataclass(frozen=True)
class Step:
    """One batch, the cache it extends, the dtype of activations, rotary angles and the kernels' plans."""

    batch: Batch
    cache: CacheTensors
    dtype: torch.dtype
    cos: Tensor  # [T, 1, rotary_dim / 2] float32
    sin: Tensor  # [T, 1, rotary_dim / 2] float32
    attention_plan: Any
    state_parts: tuple[StatePart, ...] = ()


def state_parts(batch: Batch, kernels: Kernels) -> tuple[StatePart, ...]:
    """The single tokens and the longer runs of a batch, whichever there are."""
    singles = [index for index, length in enumerate(batch.query_lens) if length == 1]
    runs = [index for index, length in enumerate(batch.query_lens) if length > 1]
    parts = []
    if singles:
        parts.append(StatePart(_rows(batch, singles), _slots(batch, singles)))
    if runs:
        slots = _slots(batch, runs)
        plan = kernels.plan_runs(tuple(batch.query_lens[index] for index in runs), slots)
        parts.append(StatePart(_rows(batch, runs), slots, plan))
    return tuple(parts)


def _slots(batch: Batch, sequences: list[int]) -> Tensor:
    if len(sequences) == len(batch.query_lens):
        return batch.state_slots
    return batch.state_slots[torch.tensor(sequences, device=batch.device)]


def _rows(batch: Batch, sequences: list[int]) -> slice | Tensor:
    """The rows of T that belong to `sequences`, as a slice when these adjoin."""
    starts = [0]
    for length in batch.query_lens:
        starts.append(starts[-1] + length)
    first, last = sequences[0], sequences[-1]
    if last - first + 1 == len(sequences):
        return slice(starts[first], starts[last + 1])
    rows = [row for index in sequences for row in range(starts[index], starts[index + 1])]
    return torch.tensor(rows, device=batch.device)
