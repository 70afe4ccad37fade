"""Paged attention on CPU: single tokens through a kernel of our own that follows the block tables, longer runs through
torch's fused attention over each sequence's keys, read in place where its blocks adjoin.

The block pool hands out the lowest free block first, so that a lone conversation's blocks nearly always form one run of
memory. Such a context is a view of the cache; any other is gathered, once per layer.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.cpu.compiler import jit, parallel_jit, run
from engine.kernels.cpu.simd import decay

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


@dataclass(frozen=True)
class SingleTokens:
    """Sequences that bring one token each: its row, its block table and the tokens it sees."""

    rows: np.ndarray  # [S] int64
    tables: np.ndarray  # [S, max_blocks] int32
    contexts: np.ndarray  # [S] int64
    seen: int
    """Tokens that all of them see together."""


@dataclass(frozen=True)
class AttentionPlan:
    """The single tokens and the longer runs of a step."""

    singles: SingleTokens
    runs: tuple[SequencePlan, ...]


def plan_attention(
    block_tables: Tensor, query_lens: tuple[int, ...], context_lens: tuple[int, ...], block_size: int
) -> AttentionPlan:
    """See `reference.plan_attention`."""
    singles, rows, runs, start = [], [], [], 0
    for row, (tokens, context) in enumerate(zip(query_lens, context_lens, strict=True)):
        if tokens == 1:
            singles.append(row)
            rows.append(start)
        else:
            table = block_tables[row, : -(-context // block_size)].tolist()
            runs.append(SequencePlan(_adjoining(table), tuple(_tiles(start, tokens, context))))
        start += tokens
    tables = block_tables.numpy()
    contexts = np.array(context_lens)[singles]
    known = SingleTokens(np.array(rows), tables if not runs else tables[singles], contexts, int(contexts.sum()))
    return AttentionPlan(known, tuple(runs))


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
    if len(plan.singles.rows):
        _attend_singles(query, key_cache, value_cache, plan.singles, scale, output)
    for sequence in plan.runs:
        keys = key_cache[sequence.blocks].flatten(0, 1).to(query.dtype)
        values = value_cache[sequence.blocks].flatten(0, 1).to(query.dtype)
        for tile in sequence.tiles:
            rows = slice(tile.start, tile.stop)
            output[rows] = _attend(query[rows], keys[: tile.context], values[: tile.context], tile.mask, scale)
    return output


def _attend_singles(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, singles: SingleTokens, scale: float, output: Tensor
) -> None:
    """Fill the rows of `singles` in `output`; query and output are float32."""
    if key_cache.dtype != torch.float32:
        blocks, tables = np.unique(singles.tables, return_inverse=True)
        used = torch.from_numpy(blocks).long()
        key_cache, value_cache = key_cache[used].float(), value_cache[used].float()
        singles = replace(singles, tables=tables.reshape(singles.tables.shape).astype(np.int32))
    tensors: tuple[Any, ...] = (
        *(query.numpy(), key_cache.numpy(), value_cache.numpy()),
        *(singles.rows, singles.tables, singles.contexts, np.float32(scale), output.numpy()),
    )
    heads, products = len(singles.rows) * key_cache.shape[2], 4 * singles.seen * query.shape[1] * query.shape[2]
    run((_decode_part, _decode), products, heads, *tensors)


@jit
def _decode_part(
    part: int,
    parts: int,
    heads: int,
    query: Any,
    keys: Any,
    values: Any,
    rows: Any,
    tables: Any,
    contexts: Any,
    scale: float,
    output: Any,
) -> None:
    first, last = part * heads // parts, (part + 1) * heads // parts
    _decode_heads(first, last, query, keys, values, rows, tables, contexts, scale, output)


@parallel_jit
def _decode(
    parts: int,
    heads: int,
    query: Any,
    keys: Any,
    values: Any,
    rows: Any,
    tables: Any,
    contexts: Any,
    scale: float,
    output: Any,
) -> None:
    for part in prange(parts):
        _decode_part(part, parts, heads, query, keys, values, rows, tables, contexts, scale, output)


@jit
def _decode_heads(
    first: int,
    last: int,
    query: Any,
    keys: Any,
    values: Any,
    rows: Any,
    tables: Any,
    contexts: Any,
    scale: float,
    output: Any,
) -> None:
    """Items `first` to `last` of all (sequence, KV head) pairs."""
    kv_heads = keys.shape[2]
    group = query.shape[1] // kv_heads
    for item in range(first, last):
        sequence, head = item // kv_heads, item % kv_heads
        row, table, context = rows[sequence], tables[sequence], contexts[sequence]
        queries = query[row, head * group : (head + 1) * group]
        scores = np.empty((group, context), np.float32)
        _score(queries, keys, head, table, context, scale, scores)
        for member in range(group):
            _softmax(scores[member])
        _mix(scores, values, head, table, context, output[row, head * group : (head + 1) * group])


@jit
def _score(queries: Any, keys: Any, head: int, table: Any, context: int, scale: float, scores: Any) -> None:
    size = keys.shape[1]
    for token in range(context):
        key = keys[table[token // size], token % size, head]
        for member in range(len(queries)):
            product = np.float32(0)
            for i in range(len(key)):
                product += queries[member, i] * key[i]
            scores[member, token] = product * scale


@jit
def _softmax(scores: Any) -> None:
    most = scores.max()
    total = np.float32(0)
    for i in range(len(scores)):
        scores[i] = decay(scores[i] - most)
        total += scores[i]
    for i in range(len(scores)):
        scores[i] /= total


@jit
def _mix(weights: Any, values: Any, head: int, table: Any, context: int, output: Any) -> None:
    size = values.shape[1]
    output[:] = 0
    for token in range(context):
        value = values[table[token // size], token % size, head]
        for member in range(len(output)):
            weight = weights[member, token]
            for i in range(len(value)):
                output[member, i] += weight * value[i]


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of [t, H, D] over [c, Hkv, D]."""
    q, k, v = query.transpose(0, 1)[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return result[0].transpose(0, 1)
