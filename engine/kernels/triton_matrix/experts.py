"""Mixture of experts for the tokens of a decode step, where reading the chosen weights is all the time there is.

Up to `DIRECT_TOKENS` tokens, each (token, choice) is a program of its own for every few rows; beyond, choices are
sorted by expert so that each chosen expert is read once, by tiles of up to 16 tokens. A shared expert of the same
format takes part as one expert more. A token's terms are added in the order of its choices, the shared expert's last,
whatever else is in the batch.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_matrix.blocks import is_block_type, row_products, row_words
from engine.kernels.triton_matrix.choices import choice_products
from engine.kernels.triton_matrix.operands import Operands, early, row_step
from engine.kernels.triton_matrix.routing import sort_choices
from engine.kernels.triton_matrix.tables import choose
from engine.kernels.triton_matrix.tiles import await_inputs, load_rows, prefetch, product, row_terms

DIRECT_TOKENS = 8


@dataclass(frozen=True)
class ExpertStack:
    """`gate_up` [E, 2·N, K] and `down` [E, K, N], each of any format, and the shared expert's likewise, if any."""

    gate_up: Operands  # [E, N, K] and gate alone, where there is `up`
    down: Operands
    shared_gate_up: Operands | None = None
    shared_down: Operands | None = None
    up: Operands | None = None  # [E, N, K] of another block type than gate

    @property
    def inner(self) -> int:
        return self.down.columns

    @property
    def hidden(self) -> int:
        return self.down.out

    @property
    def count(self) -> int:
        return self.gate_up.weight.shape[0]

    @property
    def name(self) -> str:
        """As the tables of launch parameters know it."""
        formats = dict.fromkeys((self.gate_up.format, self.up_or_any.format, self.down.format))
        return f"{'/'.join(formats)} {self.count}x{self.inner}x{self.hidden}"

    @property
    def split(self) -> str:
        """The block type of `up`, or nothing."""
        return "" if self.up is None else self.up.format

    @property
    def up_or_any(self) -> Operands:
        return self.up or self.gate_up

    @property
    def shared_gate_up_or_any(self) -> Operands:
        return self.shared_gate_up or self.gate_up

    @property
    def shared_down_or_any(self) -> Operands:
        return self.shared_down or self.down


def moe(x: Tensor, stack: ExpertStack, weights: Tensor, experts: Tensor, shared_weight: Tensor | None) -> Tensor:
    """`reference_moe.moe` for x bfloat16 [T, hidden], plus the shared expert times `sigmoid(shared_weight)` [T]."""
    if x.shape[0] <= DIRECT_TOKENS:
        return _direct(x, stack, weights, experts, shared_weight)
    return by_expert(x, stack, weights, experts, shared_weight)


def _direct(x: Tensor, stack: ExpertStack, weights: Tensor, experts: Tensor, shared_weight: Tensor | None) -> Tensor:
    tokens, choices = experts.shape
    up, down = stack.gate_up, stack.down
    shared_up, shared_down, shares = stack.shared_gate_up_or_any, stack.shared_down_or_any, shared_weight is not None
    inner = torch.empty((tokens * (choices + shares), stack.inner), dtype=x.dtype, device=x.device)
    tuned = choose("row_gate_up", stack.name, tokens)
    _row_gate_up_kernel[(triton.cdiv(stack.inner, tuned["BN"]), inner.shape[0])](
        x, up.weight, up.scale, up.expert_weight, up.expert_scale, shared_up.weight, shared_up.scale,
        stack.up_or_any.weight, stack.up_or_any.expert_weight, experts, inner, tokens, choices, stack.inner,
        stack.hidden, up.format, stack.split, up.step, row_step(stack.hidden), **tuned, **early(x),
    )  # fmt: skip
    output = torch.empty((tokens, stack.hidden), dtype=torch.float32, device=x.device)
    tuned = choose("row_down", stack.name, tokens)
    _row_down_kernel[(triton.cdiv(stack.hidden, tuned["BN"]), tokens)](
        inner, down.weight, down.scale, down.expert_weight, down.expert_scale, shared_down.weight, shared_down.scale,
        experts, weights, shared_weight if shares else weights, 0 if shared_weight is None else shared_weight.stride(0),
        output, tokens, choices, stack.hidden, stack.inner, down.format, down.step, row_step(stack.inner), shares,
        **tuned, **early(x),
    )  # fmt: skip
    return output


@triton.jit(do_not_specialize=["T"])
def _row_gate_up_kernel(
    x, w, s, expert_weight, expert_scale, shared_w, shared_s, split_w, split_weight, experts, inner,
    T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, SPLIT: tl.constexpr,
    GROUP: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    await_inputs(EARLY)
    row = tl.program_id(1)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    if row < T * TOP:
        expert = tl.load(experts + row).to(tl.int64)
        w += expert * expert_weight
        s += expert * expert_scale
        split_w += expert * split_weight
        x += row // TOP * K
    else:
        w, s = shared_w, shared_s
        x += (row - T * TOP) * K
    at = tl.minimum(cols, N - 1)
    gate, up = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for k in tl.static_range(0, K, BK):
        if is_block_type(FORMAT):
            rows = w + (at * row_words(FORMAT, K))[None, :, None, None]
            activations = x + tl.zeros((1, 1, 1, 1), tl.int32)
            gate += tl.sum(row_products(activations, None, rows, None, k, K, FORMAT, BK), 0)
            if SPLIT != "":
                rows = split_w + (at * row_words(SPLIT, K))[None, :, None, None]
                up += tl.sum(row_products(activations, None, rows, None, k, K, SPLIT, BK), 0)
            else:
                rows += N * row_words(FORMAT, K)
                up += tl.sum(row_products(activations, None, rows, None, k, K, FORMAT, BK), 0)
        else:
            gate_rows, gate_scale, gate_zero = load_rows(w, s, at, 2 * N, K, k, FORMAT, GROUP, BK)
            up_rows, up_scale, up_zero = load_rows(w, s, N + at, 2 * N, K, k, FORMAT, GROUP, BK)
            activations = tl.load(x + k + tl.arange(0, BK))
            gate += row_terms(activations, gate_rows, gate_scale, gate_zero, FORMAT, GROUP, BN, BK)
            up += row_terms(activations, up_rows, up_scale, up_zero, FORMAT, GROUP, BN, BK)
    tl.store(inner + row.to(tl.int64) * N + cols, gate * tl.sigmoid(gate) * up, mask=cols < N)


@triton.jit(do_not_specialize=["T"])
def _row_down_kernel(
    inner, w, s, expert_weight, expert_scale, shared_w, shared_s, experts, weights, shared_weight, shared_stride,
    output, T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    BK: tl.constexpr, SHARED: tl.constexpr, BN: tl.constexpr, CHOICES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = FORMAT == "int4" or is_block_type(FORMAT)
    ROW_BYTES: tl.constexpr = K // 2 if HALF else K * w.dtype.element_ty.primitive_bitwidth // 8
    token = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    at = tl.minimum(cols, N - 1)
    if EARLY:  # the kernel before this one makes `inner` alone: the experts are known already
        for choice in tl.static_range(TOP):
            expert = tl.load(experts + token * TOP + choice).to(tl.int64)
            prefetch(w + expert * expert_weight, at, K, FORMAT, ROW_BYTES)
        if SHARED:
            prefetch(shared_w, at, K, FORMAT, ROW_BYTES)
    await_inputs(EARLY)
    acc = tl.zeros((BN,), tl.float32)
    for first in tl.static_range(0, TOP + SHARED, CHOICES):
        choice = first + tl.arange(0, CHOICES)
        routed, exist = choice < TOP, choice < TOP + SHARED
        row = token * TOP + tl.minimum(choice, TOP - 1)
        expert = tl.load(experts + row).to(tl.int64)
        own_w = tl.where(routed, w + expert * expert_weight, shared_w)
        own_s = tl.where(routed, s + expert * expert_scale, shared_s)
        x = inner + tl.where(routed, row, T * TOP + token) * K
        terms = choice_products(x, own_w, own_s, exist, at, N, K, FORMAT, GROUP, CHOICES, BN, BK)
        share = tl.load(weights + row)
        if SHARED:
            own = tl.sigmoid(tl.load(shared_weight + token * shared_stride).to(tl.float32))
            share = tl.where(routed, share, own)
        acc += tl.sum(tl.where(exist[:, None], terms * share[:, None], 0.0), 0)
    tl.store(output + token * N + cols, acc, mask=cols < N)


def by_expert(x: Tensor, stack: ExpertStack, weights: Tensor, experts: Tensor, shared_weight: Tensor | None) -> Tensor:
    tokens, choices = experts.shape
    routed, BM = tokens * choices, 16
    up, down = stack.gate_up, stack.down
    shared_up, shared_down, shares = stack.shared_gate_up_or_any, stack.shared_down_or_any, shared_weight is not None
    order, starts = sort_choices(experts, stack.count)
    rows = routed + tokens * shares
    tiles = routed + triton.cdiv(tokens, BM) * shares
    inner = torch.empty((rows, stack.inner), dtype=x.dtype, device=x.device)
    tuned = choose("gate_up", stack.name, tokens)
    _gate_up_kernel[(triton.cdiv(stack.inner, tuned["BN"] // 2), tiles)](
        x, up.weight, up.scale, up.expert_weight, up.expert_scale, shared_up.weight, shared_up.scale,
        stack.up_or_any.weight, stack.up_or_any.expert_weight, experts, order, starts, inner,
        tokens, choices, stack.inner, stack.hidden, up.format, stack.split, up.step, BM, **tuned, **early(x),
    )  # fmt: skip
    terms = torch.empty((rows, stack.hidden), dtype=torch.float32, device=x.device)
    tuned = choose("down", stack.name, tokens)
    _down_kernel[(triton.cdiv(stack.hidden, tuned["BN"]), tiles)](
        inner, down.weight, down.scale, down.expert_weight, down.expert_scale, shared_down.weight, shared_down.scale,
        experts, order, starts, terms,
        tokens, choices, stack.hidden, stack.inner, down.format, down.step, BM, **tuned, **early(x),
    )  # fmt: skip
    return add_terms(terms, weights, shared_weight)


@triton.jit
def _own_rows(tile, experts, order, starts, T, TOP: tl.constexpr, BM: tl.constexpr):
    """The expert (-1: shared) of a tile, its choices int64 [BM] and which of them exist; none for an idle tile.

    Tile t of the routed ones stands for sorted choice t, and works where that is a multiple of BM from its expert's
    first: no list of tiles need be made, and idle programs end here.
    """
    expert = tl.full((), -1, tl.int64)
    lanes = tl.arange(0, BM)
    if tile < T * TOP:
        expert = tl.load(experts + tl.load(order + tile)).to(tl.int64)
        first = tl.load(starts + expert)
        last = tl.load(starts + expert + 1)
        at = tile + lanes
        exist = at < tl.where((tile - first) % BM == 0, last, 0)
        choices = tl.load(order + tl.minimum(at, last - 1)).to(tl.int64)
    else:
        at = (tile - T * TOP) * BM + lanes
        exist = at < T
        choices = (T * TOP + tl.minimum(at, T - 1)).to(tl.int64)
    return expert, choices, exist


@triton.jit(do_not_specialize=["T"])
def _gate_up_kernel(
    x, w, s, expert_weight, expert_scale, shared_w, shared_s, split_w, split_weight, experts, order, starts, inner,
    T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, SPLIT: tl.constexpr,
    BK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    await_inputs(EARLY)
    expert, choices, exist = _own_rows(tl.program_id(1), experts, order, starts, T, TOP, BM)
    if tl.sum(exist.to(tl.int32), 0) == 0:
        return
    if expert >= 0:
        w += expert * expert_weight
        s += expert * expert_scale
        rows = choices // TOP
    else:
        w, s = shared_w, shared_s
        rows = choices - T * TOP
    split_w += expert * split_weight
    gate, up = gate_and_up(x, rows, exist, w, s, split_w, N, K, FORMAT, SPLIT, BM, BN, BK)
    at = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
    out = inner + choices[:, None] * N + at[None, :]
    tl.store(out, gate * tl.sigmoid(gate) * up, mask=exist[:, None] & (at < N)[None, :])


@triton.jit(do_not_specialize=["T"])
def _down_kernel(
    inner, w, s, expert_weight, expert_scale, shared_w, shared_s, experts, order, starts, terms,
    T, TOP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, BK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    await_inputs(EARLY)
    expert, choices, exist = _own_rows(tl.program_id(1), experts, order, starts, T, TOP, BM)
    if tl.sum(exist.to(tl.int32), 0) == 0:
        return
    if expert >= 0:
        w += expert * expert_weight
        s += expert * expert_scale
    else:
        w, s = shared_w, shared_s
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    acc = product(inner, choices, exist, w, s, tl.minimum(cols, N - 1), N, K, FORMAT, BM, BN, BK)
    tl.store(terms + choices[:, None] * N + cols[None, :], acc, mask=exist[:, None] & (cols < N)[None, :])


@triton.jit
def gate_and_up(
    x, rows, exist, w, s, split_w, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Float32 [BM, BN / 2] each, of program_id(0)'s inner columns: see `tiles.product`."""
    if SPLIT != "":
        cols = tl.minimum(tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2), N - 1)
        gate = product(x, rows, exist, w, s, cols, N, K, FORMAT, BM, BN // 2, BK)
        up = product(x, rows, exist, split_w, s, cols, N, K, SPLIT, BM, BN // 2, BK)
    else:
        # Gate and up rows by turns, so that a pair meets in one thread.
        lanes = tl.arange(0, BN)
        cols = tl.minimum(tl.program_id(0) * (BN // 2) + lanes // 2, N - 1) + lanes % 2 * N
        acc = product(x, rows, exist, w, s, cols, 2 * N, K, FORMAT, BM, BN, BK)
        gate, up = tl.split(tl.reshape(acc, (BM, BN // 2, 2)))
    return gate, up


def add_terms(terms: Tensor, weights: Tensor, shared_weight: Tensor | None) -> Tensor:
    """Float32 [T, hidden] of `terms` [T·k (+ T), hidden], the choices' and then the shared expert's, times weights."""
    tokens, choices = weights.shape
    hidden = terms.shape[1]
    output = torch.empty((tokens, hidden), dtype=torch.float32, device=terms.device)
    block = 1024
    _add_kernel[(tokens, triton.cdiv(hidden, block))](
        terms, weights, weights if shared_weight is None else shared_weight,
        0 if shared_weight is None else shared_weight.stride(0), output,
        tokens, choices, hidden, shared_weight is not None, block, num_warps=4, **early(terms),
    )  # fmt: skip
    return output


@triton.jit(do_not_specialize=["T"])
def _add_kernel(
    terms, weights, shared_weight, shared_stride, output, T, TOP: tl.constexpr, N: tl.constexpr,
    SHARED: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    await_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = cols < N
    acc = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP):
        row = token * TOP + choice
        acc += tl.load(terms + row * N + cols, mask=valid).to(tl.float32) * tl.load(weights + row)
    if SHARED:
        share = tl.sigmoid(tl.load(shared_weight + token * shared_stride).to(tl.float32))
        acc += tl.load(terms + (T * TOP + token) * N + cols, mask=valid).to(tl.float32) * share
    tl.store(output + token * N + cols, acc, mask=valid)
