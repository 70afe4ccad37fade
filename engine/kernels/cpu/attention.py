"""Paged attention on CPU: torch's fused attention over each sequence's keys, read in place where its blocks adjoin.

The block pool hands out the lowest free block first, so that a lone conversation's blocks nearly always form one run of
memory. Such a context is a view of the cache; any other is gathered, once per layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

QUERY_TILE = 256
"""Rows of a chunk that share one mask: bounds the mask to 256 x context entries."""


@dataclass(frozen=True)
class QueryTile:
    """Rows `start:stop` of the step attend to the first `context` tokens; `mask` None hides nothing."""

    start: int
    stop: int
    context: int
    mask: Tensor | None


@dataclass(frozen=True)
class SequencePlan:
    """One sequence's blocks, as a slice when they adjoin, and its query rows in tiles."""

    blocks: slice | Tensor
    tiles: tuple[QueryTile, ...]


AttentionPlan = tuple[SequencePlan, ...]


def plan_attention(
    block_tables: Tensor, query_lens: tuple[int, ...], context_lens: tuple[int, ...], block_size: int
) -> AttentionPlan:
    """See `reference.plan_attention`."""
    plans, start = [], 0
    for row, (tokens, context) in enumerate(zip(query_lens, context_lens, strict=True)):
        table = block_tables[row, : -(-context // block_size)].tolist()
        plans.append(SequencePlan(_adjoining(table), tuple(_tiles(start, tokens, context))))
        start += tokens
    return tuple(plans)


def _adjoining(table: list[int]) -> slice | Tensor:
    if table == list(range(table[0], table[0] + len(table))):
        return slice(table[0], table[0] + len(table))
    return torch.tensor(table)


def _tiles(start: int, tokens: int, context: int) -> list[QueryTile]:
    tiles = []
    for first in range(0, tokens, QUERY_TILE):
        last = min(first + QUERY_TILE, tokens)
        seen = context - tokens + last
        mask = None if last - first == 1 else _causal_mask(last - first, seen)
        tiles.append(QueryTile(start + first, start + last, seen, mask))
    return tiles


def _causal_mask(tokens: int, context: int) -> Tensor:
    visible = torch.ones(tokens, context, dtype=torch.bool).tril(context - tokens)
    return torch.zeros(tokens, context).masked_fill_(~visible, float("-inf"))


def paged_attention(query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """See `reference.paged_attention`."""
    output = torch.empty_like(query)
    for sequence in plan:
        keys = key_cache[sequence.blocks].flatten(0, 1).to(query.dtype)
        values = value_cache[sequence.blocks].flatten(0, 1).to(query.dtype)
        for tile in sequence.tiles:
            rows = slice(tile.start, tile.stop)
            output[rows] = _attend(query[rows], keys[: tile.context], values[: tile.context], tile.mask, scale)
    return output


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of [t, H, D] over [c, Hkv, D]; one token's query heads of a KV head become that head's query rows."""
    tokens, heads, width = query.shape
    kv_heads = keys.shape[1]
    k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    if tokens == 1:
        q = query.view(1, kv_heads, heads // kv_heads, width)
        return F.scaled_dot_product_attention(q, k, v, scale=scale).reshape(1, heads, width)
    q = query.transpose(0, 1)[None]
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return result[0].transpose(0, 1)
