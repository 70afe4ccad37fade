"""The least time a step can take: bytes over bandwidth or operations over rate, whichever is more.

A decode step reads every weight once but of the experts only those that some token chose; each sequence's keys and
values; and each sequence's DeltaNet state, which is written back. Routing is taken as even, which reads most: of E
experts, of which a token takes k, B tokens take E (1 − (1 − k/E)^B). Prefill does two operations for each active weight
and token, and attention four for each query head's dimension and pair of tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from engine.cache.delta_state import slot_bytes
from engine.cache.paged_kv import attention_layers, block_bytes
from engine.config import ModelConfig
from engine.errors import UserError
from engine.quant.formats import FP8_BLOCK, PLAIN, check_level, recipe
from engine.quant.grouped_int import BITS, matrix_bytes
from engine.weights.layout import TensorSpec, tensor_specs


@dataclass(frozen=True)
class Machine:
    """Bytes per second of memory (reads and writes together) and operations per second of bfloat16 products."""

    bandwidth: float
    rate: float


LINK = 4.5e11
"""Bytes per second that a GPU sends to others: NVLink of Hopper, 900 GB/s both ways together, as its maker states."""

H200 = Machine(4.3e12, 7.9e14)
"""One NVIDIA H200: a device-to-device copy and an 8192³ product through torch, as measured."""


def level_bytes(config: ModelConfig, level: str) -> dict[str, int]:
    """Bytes of the weights per tensor class at a level; UserError for `as-stored`, which no formula knows."""
    totals: dict[str, int] = {}
    for spec in tensor_specs(config):
        format = recipe(check_level(level), spec.tensor_class)
        if format == "as-stored":
            raise UserError("--quant as-stored: what a file holds is known when it is loaded; name a level")
        totals[spec.tensor_class] = totals.get(spec.tensor_class, 0) + _tensor_bytes(spec, format)
    return totals


def _tensor_bytes(spec: TensorSpec, format: str) -> int:
    count = math.prod(spec.shape)
    if format in PLAIN:
        return count * PLAIN[format].itemsize
    columns, rows, matrices = spec.shape[-1], spec.shape[-2], count // (spec.shape[-1] * spec.shape[-2])
    if format == "int8":
        return count + 2 * rows * matrices
    if format in BITS:
        return matrix_bytes(format, rows * matrices, columns)
    return count + 4 * matrices * math.ceil(rows / FP8_BLOCK) * math.ceil(columns / FP8_BLOCK)


def chosen_share(config: ModelConfig, tokens: int) -> float:
    """The share of experts that at least one of `tokens` tokens takes, each taking k of E evenly."""
    if not config.num_experts:
        return 1.0
    return 1.0 - (1.0 - config.num_experts_per_token / config.num_experts) ** tokens


def weight_bytes(config: ModelConfig, sizes: Mapping[str, int], tokens: int) -> float:
    """Bytes of weights that a step of `tokens` tokens reads; `sizes` are bytes per tensor class."""
    looked_up = 0 if config.tie_word_embeddings else sizes.get("embedding", 0)
    experts = sizes.get("expert", 0)
    return sum(sizes.values()) - looked_up - experts * (1 - chosen_share(config, tokens))


def decode_bytes(config: ModelConfig, sizes: Mapping[str, int], batch: int, context: int, ranks: int = 1) -> float:
    """Bytes that a decode step moves: `batch` sequences with `context` tokens each, bfloat16 KV, float32 states.

    Of several `ranks`, those that the one moves whose part of the weights `sizes` are.
    """
    kept_by = min(ranks, config.num_kv_heads)  # more ranks than KV heads hold copies
    kv = block_bytes(config, 1, torch.bfloat16) * context
    state = 2 * slot_bytes(config, torch.bfloat16, torch.float32)
    return weight_bytes(config, sizes, batch) + batch * (kv / kept_by + state / ranks)


def decode_limit(
    config: ModelConfig, sizes: Mapping[str, int], batch: int, context: int, machine: Machine, ranks: int = 1
) -> float:
    """Tokens per second of `batch` sequences together.

    `config` is the whole model's. Of several `ranks`, `sizes` are one's part: it waits for those bytes, for its share
    of keys, values and states, and for the sums between ranks.
    """
    seconds = max(
        decode_bytes(config, sizes, batch, context, ranks) / machine.bandwidth,
        batch * _operations(config, 1, context) / ranks / machine.rate,
    )
    return batch / (seconds + link_bytes(config, batch, ranks) / LINK)


def link_bytes(config: ModelConfig, tokens: int, ranks: int) -> float:
    """Bytes that each rank sends in a step of `tokens` tokens: two sums a layer of bfloat16 rows of the hidden size.

    A sum in which every byte is sent as seldom as can be takes 2 (N - 1) / N of its size (Patarasuk and Yuan 2009).
    """
    return 2 * config.num_layers * tokens * config.hidden_size * 2 * 2 * (ranks - 1) / ranks


def prefill_limit(
    config: ModelConfig, sizes: Mapping[str, int], tokens: int, machine: Machine, ranks: int = 1
) -> float:
    """Tokens per second of one fresh prompt of `tokens` tokens, with products at the bfloat16 rate.

    `config` is the whole model's; `sizes` are one rank's and `ranks` as of `decode_limit`.
    """
    moved = weight_bytes(config, sizes, tokens) + tokens * block_bytes(config, 1, torch.bfloat16) / min(
        ranks, config.num_kv_heads
    )
    seconds = max(moved / machine.bandwidth, tokens * _operations(config, 1, tokens / 2) / ranks / machine.rate)
    return tokens / (seconds + link_bytes(config, tokens, ranks) / LINK)


def _operations(config: ModelConfig, tokens: int, context: float) -> float:
    """Operations of `tokens` tokens that see `context` tokens each, without the head."""
    scores = 4 * config.num_attention_heads * config.head_dim * context * len(attention_layers(config))
    return tokens * (2 * config.active_weights + scores)
