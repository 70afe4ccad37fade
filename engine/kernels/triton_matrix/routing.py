"""Which experts a token goes to, and which tokens an expert has."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_matrix.operands import early
from engine.kernels.triton_matrix.tiles import await_inputs

SORT_STEP = 2048


def route(logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """See `reference_moe.route`; of equal logits the lower number is taken first."""
    tokens, count = logits.shape
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=logits.device)
    experts = torch.empty((tokens, top_k), dtype=torch.int64, device=logits.device)
    block = triton.next_power_of_2(count)
    _route_kernel[(tokens,)](
        logits, logits.stride(0), weights, experts, count, top_k, triton.next_power_of_2(top_k), renormalise, block,
        num_warps=1, **early(logits),
    )  # fmt: skip
    return weights, experts


@triton.jit
def _ordered(bits):
    """A float's bits as a whole number of the same order; its own inverse."""
    return bits ^ ((bits >> 15) & 0x7FFF)


@triton.jit
def _route_kernel(
    logits,
    stride,
    weights,
    experts,
    E,
    TOP: tl.constexpr,
    SLOTS: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    await_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    at, slots = tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    left = tl.load(logits + token * stride + at, mask=at < E, other=float("-inf")).to(tl.float32)
    most = tl.max(left, 0)
    total = tl.sum(tl.exp(left - most), 0)
    chosen, shares = tl.zeros((SLOTS,), tl.int32), tl.zeros((SLOTS,), tl.float32)
    if logits.dtype.element_ty == tl.bfloat16:
        # One whole number orders logits and, among equal ones, experts: a maximum of these is one instruction a warp.
        bits = left.to(tl.bfloat16).to(tl.int16, bitcast=True)
        keys = (_ordered(bits).to(tl.int32) << 16) | (65535 - at)
        for slot in tl.static_range(TOP):
            key = tl.max(keys, 0)
            value = _ordered((key >> 16).to(tl.int16)).to(tl.bfloat16, bitcast=True).to(tl.float32)
            chosen = tl.where(slots == slot, 65535 - (key & 65535), chosen)
            shares = tl.where(slots == slot, tl.exp(value - most), shares)
            keys = tl.where(keys == key, -(2**31), keys)
    else:
        for slot in tl.static_range(TOP):
            value, index = tl.max(left, 0, return_indices=True)
            chosen = tl.where(slots == slot, index, chosen)
            shares = tl.where(slots == slot, tl.exp(value - most), shares)
            left = tl.where(at == index, float("-inf"), left)
    shares /= tl.sum(shares, 0) if RENORMALISE else total
    tl.store(weights + token * TOP + slots, shares, mask=slots < TOP)
    tl.store(experts + token * TOP + slots, chosen.to(tl.int64), mask=slots < TOP)


def sort_choices(experts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choices by expert: their numbers int32 [P] in a stable order, and where each expert's start, int32 [count + 1].

    `experts` holds P numbers below `count`. One program for each expert counts the choices of lower experts, which is
    where its own start, and places its own: P · count comparisons, and no second pass over the others' results.
    """
    choices = experts.numel()
    order = torch.empty(choices, dtype=torch.int32, device=experts.device)
    starts = torch.empty(count + 1, dtype=torch.int32, device=experts.device)
    step = min(SORT_STEP, max(128, triton.next_power_of_2(choices)))
    _sort_kernel[(count,)](experts, order, starts, choices, count, step, num_warps=4, **early(experts))
    return order, starts


@triton.jit(do_not_specialize=["P"])
def _sort_kernel(experts, order, starts, P, E, STEP: tl.constexpr, EARLY: tl.constexpr):
    await_inputs(EARLY)
    own = tl.program_id(0)
    lower = tl.zeros((STEP,), tl.int32)
    for p in tl.range(0, P, STEP):
        at = p + tl.arange(0, STEP)
        lower += (tl.load(experts + at, mask=at < P, other=E) < own).to(tl.int32)
    start = tl.sum(lower, 0)
    tl.store(starts + own, start)
    if own == E - 1:
        tl.store(starts + E, P)
    for p in tl.range(0, P, STEP):
        at = p + tl.arange(0, STEP)
        same = (tl.load(experts + at, mask=at < P, other=E) == own).to(tl.int32)
        tl.store(order + start + tl.cumsum(same, 0) - 1, at, mask=same == 1)
        start += tl.sum(same, 0)


def tile_table(starts: Tensor, rows: int, choices: int) -> Tensor:
    """The tiles of at most `rows` sorted choices that no two experts share: int32 [tiles, 2] of expert and first.

    As many as `choices` could need at worst; what is beyond the last has expert -1, and its first is not set.
    """
    count = starts.shape[0] - 1
    most = min(choices, choices // rows + count)
    table = torch.empty((most, 2), dtype=torch.int32, device=starts.device)
    _tile_kernel[(1,)](starts, table, most, count, rows, triton.next_power_of_2(count), num_warps=4, **early(starts))
    return table


@triton.jit(do_not_specialize=["most"])
def _tile_kernel(starts, table, most, E, ROWS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    await_inputs(EARLY)
    expert = tl.arange(0, BLOCK)
    first = tl.load(starts + expert, mask=expert < E, other=0)
    tiles = tl.cdiv(tl.load(starts + expert + 1, mask=expert < E, other=0) - first, ROWS)
    place, total = tl.cumsum(tiles, 0) - tiles, tl.sum(tiles, 0)
    for tile in tl.range(0, tl.max(tiles, 0)):
        at = table + 2 * (place + tile)
        tl.store(at, expert, mask=tile < tiles)
        tl.store(at + 1, first + tile * ROWS, mask=tile < tiles)
    for idle in tl.range(0, most, BLOCK):
        at = idle + expert
        tl.store(table + 2 * at, -1, mask=(at >= total) & (at < most))
