"""The one thing the model is told of a step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One step's tokens of B sequences, concatenated to T rows; every tensor lives on the model's device.

    A sequence of `query_lens[b]` new tokens has `context_lens[b]` tokens in the cache once this step is done (its new
    ones included). `slot_mapping` is `block * block_size + offset` for each new token. `state_slots` names the
    DeltaNet slot of each sequence; its content is the state before this step, and zeros at a sequence's start.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    block_tables: Tensor  # [B, max_blocks] int32, padded with 0
    query_starts: Tensor  # [B + 1] int32, cumulative
    state_slots: Tensor  # [B] int64
    logit_rows: Tensor  # [R] int64, rows of T whose logits are wanted
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        return self.token_ids.device

    @property
    def is_decode(self) -> bool:
        """Whether every sequence brings exactly one new token."""
        return all(length == 1 for length in self.query_lens)
