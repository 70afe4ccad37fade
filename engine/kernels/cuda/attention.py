"""Paged attention by torch's fused attention: single tokens of all sequences at once, longer runs one by one.

Contexts are gathered from their blocks, padded to the longest of a group. Query heads that read one KV head become its
query rows, or its heads over keys that are repeated in name only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.rows import take_rows

GATHERED_TOKENS = 1 << 19
"""Most tokens, padding included, whose keys are gathered at once: 512 MiB at 2 heads of 256 in bfloat16."""

QUERY_TILE = 1024
"""Rows of a run that share one mask."""


@dataclass(frozen=True)
class Singles:
    """Sequences with one new token each; `mask` [B, 1, 1, context] is True where to look, None where all is seen."""

    rows: slice | Tensor
    blocks: Tensor  # [B, n] int64
    context: int
    mask: Tensor | None


@dataclass(frozen=True)
class Tile:
    """Rows `rows` of a run over its first `context` tokens; without `mask`, the run starts its sequence."""

    rows: slice
    context: int
    mask: Tensor | None


@dataclass(frozen=True)
class Run:
    """Several new tokens of one sequence, whose context lies in `blocks` [n] int64."""

    blocks: Tensor
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class AttentionPlan:
    singles: tuple[Singles, ...]
    runs: tuple[Run, ...]


def plan_attention(
    block_tables: Tensor, query_lens: tuple[int, ...], context_lens: tuple[int, ...], block_size: int
) -> AttentionPlan:
    """See `reference.plan_attention`."""
    tables, starts, runs = block_tables.long(), [0], []
    for row, (tokens, context) in enumerate(zip(query_lens, context_lens, strict=True)):
        if tokens > 1:
            blocks = tables[row, : -(-context // block_size)]
            runs.append(Run(blocks, tuple(_tiles(starts[-1], tokens, context, tables.device))))
        starts.append(starts[-1] + tokens)
    alone = [row for row, tokens in enumerate(query_lens) if tokens == 1]
    groups = _fitting(alone, context_lens)
    singles = (_singles(group, tables, starts, context_lens, block_size) for group in groups)
    return AttentionPlan(tuple(singles), tuple(runs))


def _fitting(rows: list[int], context_lens: tuple[int, ...]) -> list[list[int]]:
    """Neighbours in groups whose padded contexts have at most `GATHERED_TOKENS` tokens, or of one sequence."""
    groups: list[list[int]] = []
    longest = 0
    for row in rows:
        longest = max(longest, context_lens[row])
        if not groups or longest * (len(groups[-1]) + 1) > GATHERED_TOKENS:
            groups.append([])
            longest = context_lens[row]
        groups[-1].append(row)
    return groups


def _singles(
    group: list[int], tables: Tensor, starts: list[int], context_lens: tuple[int, ...], block_size: int
) -> Singles:
    lens = [context_lens[row] for row in group]
    longest = max(lens)
    first, last = group[0], group[-1] + 1
    adjoin = last - first == len(group)
    chosen = tables[first:last] if adjoin else tables[torch.tensor(group, device=tables.device)]
    blocks, mask = chosen[:, : -(-longest // block_size)], None
    if min(lens) < longest:
        longest = blocks.shape[1] * block_size
        known = torch.tensor(lens, device=tables.device)
        mask = (torch.arange(longest, device=tables.device) < known[:, None])[:, None, None]
    rows = [starts[row] for row in group]
    where = slice(rows[0], rows[-1] + 1) if adjoin else torch.tensor(rows, device=tables.device)
    return Singles(where, blocks, longest, mask)


def _tiles(start: int, tokens: int, context: int, device: torch.device) -> list[Tile]:
    if tokens == context:
        return [Tile(slice(start, start + tokens), context, None)]
    tiles = []
    for first in range(0, tokens, QUERY_TILE):
        last = min(first + QUERY_TILE, tokens)
        seen = context - tokens + last
        mask = torch.ones(last - first, seen, dtype=torch.bool, device=device).tril(seen - last + first)
        tiles.append(Tile(slice(start + first, start + last), seen, mask))
    return tiles


def paged_attention(query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """See `reference.paged_attention`; products are of the cache's dtype, sums, scores and softmax float32."""
    cast, output = query.to(key_cache.dtype), torch.empty_like(query)
    for singles in plan.singles:
        keys, values = (take_rows(cache, singles.blocks).flatten(1, 2) for cache in (key_cache, value_cache))
        output[singles.rows] = _attend_singles(cast[singles.rows], keys, values, singles, scale)
    for run in plan.runs:
        keys, values = (take_rows(cache, run.blocks).flatten(0, 1) for cache in (key_cache, value_cache))
        for tile in run.tiles:
            output[tile.rows] = _attend_run(cast[tile.rows], keys, values, tile, scale)
    return output


def _attend_singles(query: Tensor, keys: Tensor, values: Tensor, singles: Singles, scale: float) -> Tensor:
    """[B, H, D] over [B, context, Hkv, D], each KV head's query heads as rows."""
    count, heads, width = query.shape
    q = query.reshape(count, keys.shape[2], -1, width)
    k, v = (x[:, : singles.context].transpose(1, 2) for x in (keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=singles.mask, scale=scale).reshape(count, heads, width)


def _attend_run(query: Tensor, keys: Tensor, values: Tensor, tile: Tile, scale: float) -> Tensor:
    """[t, H, D] over [context, Hkv, D], a KV head to a batch entry."""
    tokens, heads, width = query.shape
    kv_heads = keys.shape[1]
    q = query.view(tokens, kv_heads, heads // kv_heads, width).permute(1, 2, 0, 3)
    k, v = (x[: tile.context].transpose(0, 1).unsqueeze(1).expand(-1, q.shape[1], -1, -1) for x in (keys, values))
    causal = tile.mask is None
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=tile.mask, is_causal=causal, scale=scale)
    return result.permute(2, 0, 1, 3).reshape(tokens, heads, width)
