"""The Triton family against the plain references: on a GPU, or anywhere under TRITON_INTERPRET=1."""

import os
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.core.mixed_layout import Layout, fill
from engine.core.request import Request, SamplingParams
from engine.core.sequence import Chunk, SequenceState
from engine.core.text_stream import TextStream
from engine.kernels import reference
from engine.kernels.ops import HeadNorms, MixedNumbers
from engine.kernels.reference_delta import DeltaWeights

CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not CUDA and os.environ.get("TRITON_INTERPRET") != "1",
        reason="needs a CUDA device, or TRITON_INTERPRET=1 in the environment",
    ),
]
triton = pytest.importorskip("engine.kernels.triton")
DEVICE = "cuda" if CUDA else "cpu"

BF16 = 6e-3 if CUDA else 1.5e-2
"""Relative error of a result in bfloat16; the interpreter cuts off where a GPU rounds."""
KV = torch.bfloat16 if CUDA else torch.float32
"""The interpreter's dot takes the bits of bfloat16 for whole numbers."""

STATE = 2e-3
"""Of a state: its inputs are rounded to bfloat16 after a sum whose order differs, its products to TF32."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖ in float64; infinite where `got` has what is no number."""
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("width", [48, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_rms_norm(tokens: int, width: int, dtype: torch.dtype) -> None:
    hidden, delta, weight = randn(tokens, width), randn(tokens, width, dtype=dtype), randn(width)
    total = hidden + delta
    got = triton.add_rms_norm(hidden, delta, weight, 1e-6, dtype)
    assert torch.equal(hidden, total)
    assert got.dtype == dtype
    assert error(got, reference.rms_norm(total, weight, 1e-6, torch.float32)) < (1e-6 if got.itemsize == 4 else BF16)
    assert error(triton.rms_norm(total, weight, 1e-6, dtype), got) < BF16


def delta_weights(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> DeltaWeights:
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    rates = torch.rand(value_heads, device=DEVICE) * 15 + 1
    return DeltaWeights(randn(channels, 4), rates, randn(value_heads), randn(value_dim), 1e-6, key_heads)


class Layer:
    """A DeltaNet layer between its projections: random weights and states, and the reference in float32."""

    def __init__(self, key_heads: int, value_heads: int, dim: int, slots: int) -> None:
        self.keys, self.values, self.dim = key_heads, value_heads, dim
        self.weights = delta_weights(key_heads, value_heads, dim, dim)
        self.window = randn(slots, (2 * key_heads + value_heads) * dim, 3, dtype=KV)
        self.recurrent = randn(slots, value_heads, dim, dim)

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        shared = self.values // self.keys
        qkvz = randn(tokens, self.keys * (2 + 2 * shared) * self.dim, dtype=KV)
        return qkvz, randn(tokens, self.keys * 2 * shared, dtype=KV)

    def reference(self, qkvz: Tensor, ba: Tensor, slots: Tensor, lens: Sequence[int] | None) -> Tensor:
        """As `engine.model.delta_net` composes it."""
        tokens, dim, shared = len(qkvz), self.dim, self.values // self.keys
        q, k, v, z = qkvz.view(tokens, self.keys, -1).split([dim, dim, shared * dim, shared * dim], -1)
        mixed = torch.cat((q.flatten(1), k.flatten(1), v.flatten(1)), -1)
        b, a = ba.view(tokens, self.keys, 2, -1).unbind(2)
        g, beta = reference.delta_gates(a.flatten(1), b.flatten(1), self.weights.decay_rate, self.weights.dt_bias)
        plan = None if lens is None else reference.plan_runs(tuple(lens), slots)
        if plan is None:
            mixed = reference.causal_conv_step(mixed, self.weights.conv, self.window, slots)
        else:
            mixed = reference.causal_conv(mixed, self.weights.conv, self.window, plan)
        q, k, v = mixed.split([self.keys * dim, self.keys * dim, self.values * dim], -1)
        heads = q.view(tokens, -1, dim), k.view(tokens, -1, dim), v.view(tokens, -1, dim)
        if plan is None:
            output = reference.delta_rule_step(*heads, g, beta, self.recurrent, slots)
        else:
            output = reference.delta_rule_chunked(*heads, g, beta, self.recurrent, plan)
        gate = z.reshape(output.shape)
        return reference.gated_rms_norm(output, gate, self.weights.norm, 1e-6, torch.float32)


SHAPES = [(2, 4, 32), (2, 2, 16), (16, 32, 128)]


@pytest.mark.parametrize("shape", SHAPES if CUDA else SHAPES[:2])
def test_delta_net_step(shape: tuple[int, int, int]) -> None:
    layer, slots = Layer(*shape, slots=7), torch.tensor([5, 0, 3], device=DEVICE)
    qkvz, ba = layer.inputs(3)
    window, recurrent = layer.window.clone(), layer.recurrent.clone()
    for _ in range(2):
        want = layer.reference(qkvz, ba, slots, None)
        got = triton.delta_net_step(qkvz, ba, layer.weights, window, recurrent, slots, KV)
        assert error(got, want) < BF16
        assert error(recurrent, layer.recurrent) < STATE
        assert torch.equal(window, layer.window)


def test_delta_net_step_leaves_padding_alone() -> None:
    layer, slots = Layer(2, 4, 32, slots=3), torch.tensor([1, -1], device=DEVICE)
    window, recurrent = layer.window.clone(), layer.recurrent.clone()
    got = triton.delta_net_step(*layer.inputs(2), layer.weights, window, recurrent, slots, KV)
    assert got[0].count_nonzero()
    assert not got[1].count_nonzero()
    assert torch.equal(window[[0, 2]], layer.window[[0, 2]])
    assert torch.equal(recurrent[[0, 2]], layer.recurrent[[0, 2]])


@pytest.mark.parametrize("lens", [(70,), (1, 2, 130, 64), (3, 200)])
@pytest.mark.parametrize("shape", SHAPES if CUDA else SHAPES[:2])
def test_delta_net_runs(shape: tuple[int, int, int], lens: tuple[int, ...]) -> None:
    layer = Layer(*shape, slots=6)
    slots = torch.tensor([5, 0, 3, 1][: len(lens)], device=DEVICE)
    qkvz, ba = layer.inputs(sum(lens))
    window, recurrent = layer.window.clone(), layer.recurrent.clone()
    want = layer.reference(qkvz, ba, slots, lens)
    got = triton.delta_net_runs(qkvz, ba, layer.weights, window, recurrent, triton.plan_runs(lens, slots), KV)
    assert error(got, want) < BF16
    assert error(recurrent, layer.recurrent) < STATE
    assert torch.equal(window, layer.window)


def test_equal_keys_are_solved_as_well() -> None:
    """The system is worst when a chunk repeats one key with full strength and no decay."""
    layer, slots = Layer(2, 4, 32, slots=1), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    qkvz, ba = layer.inputs(1)
    qkvz, ba = qkvz.expand(128, -1).contiguous(), ba.expand(128, -1).contiguous()
    ba.view(128, 2, 2, 2)[:, :, 0], ba.view(128, 2, 2, 2)[:, :, 1] = 9.0, -9.0
    window, recurrent = layer.window.clone(), layer.recurrent.clone()
    want = layer.reference(qkvz, ba, slots, (128,))
    got = triton.delta_net_runs(qkvz, ba, layer.weights, window, recurrent, triton.plan_runs((128,), slots), KV)
    assert error(got, want) < BF16


def head_inputs(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Query, gate (interleaved per head, as projected), key and value."""
    query, gate = randn(tokens, heads, 2 * dim, dtype=dtype).chunk(2, -1)
    return query, gate, randn(tokens, kv_heads, dim, dtype=dtype), randn(tokens, kv_heads, dim, dtype=dtype)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("dim", [64, 256])
def test_norm_rotate_and_store(normed: bool, dim: int) -> None:
    query, _, key, value = head_inputs(3, 4, 2, dim, torch.bfloat16)
    norms = HeadNorms(randn(dim), randn(dim), 1e-6) if normed else None
    angles = randn(3, 1, dim // 8)
    slots = torch.tensor([17, -1, 40], device=DEVICE)
    caches = [torch.full((3, 16, 2, dim), 7.0, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    got = triton.norm_rotate_and_store(query, key, value, norms, angles.cos(), angles.sin(), *caches, slots)
    if norms is not None:
        query = reference.rms_norm(query, norms.query, 1e-6, torch.float32)
        key = reference.rms_norm(key, norms.key, 1e-6, torch.float32)
    assert error(got, reference.rotate(query, angles.cos(), angles.sin())) < BF16
    flat = [cache.view(-1, 2, dim) for cache in caches]
    assert error(flat[0][[17, 40]], reference.rotate(key, angles.cos(), angles.sin())[[0, 2]]) < BF16
    assert torch.equal(flat[1][[17, 40]], value[[0, 2]])
    rest = [row for row in range(48) if row not in (17, 40)]
    assert all(bool((cache[rest] == 7).all()) for cache in flat)


@pytest.mark.parametrize("heads", [(4, 2, 64), (16, 2, 256)] if CUDA else [(4, 2, 64)])
@pytest.mark.parametrize(
    ("query_lens", "context_lens"),
    [((1, 1, 1), (1, 200, 77)), ((40, 1, 5), (40, 300, 17)), ((200,), (333,)), ((16, 130), (16, 450))],
)
@pytest.mark.parametrize("gated", [True, False])
def test_gated_attention(
    heads: tuple[int, int, int], query_lens: tuple[int, ...], context_lens: tuple[int, ...], gated: bool
) -> None:
    tokens, blocks = sum(query_lens), 40
    query, gate, _, _ = head_inputs(tokens, *heads, KV)
    keys, values = (randn(blocks * 3, 16, *heads[1:], dtype=KV) for _ in range(2))
    tables = torch.randperm(blocks * 3, device=DEVICE)[: blocks * len(query_lens)].view(-1, blocks).int()
    plan = triton.plan_attention(tables, query_lens, context_lens, 16)
    gates = gate if gated else None
    got = triton.gated_attention(query.contiguous(), keys, values, plan, 0.1, gates, KV)
    exact = reference.plan_attention(tables, query_lens, context_lens, 16)
    want = reference.paged_attention(query.double().float(), keys, values, exact, 0.1)
    want = want * torch.sigmoid(gate.float()) if gated else want
    assert error(got, want) < 2 * BF16


def test_a_token_does_not_depend_on_the_batch() -> None:
    query, gate, _, _ = head_inputs(4, 16, 2, 64, KV)
    keys, values = (randn(64, 16, 2, 64, dtype=KV) for _ in range(2))
    tables, lens = torch.randperm(64, device=DEVICE).view(4, 16).int(), (250, 3, 99, 128)

    def attend(rows: list[int]) -> Tensor:
        plan = triton.plan_attention(tables[rows], (1,) * len(rows), tuple(lens[row] for row in rows), 16)
        q, g = query[rows].contiguous(), gate[rows].contiguous()
        result: Tensor = triton.gated_attention(q, keys, values, plan, 0.1, g, KV)
        return result

    together = attend([0, 1, 2, 3])
    for row in range(4):
        assert torch.equal(attend([row])[0], together[row])


def mixed_numbers(
    lens: Sequence[int], contexts: Sequence[int], blocks: Sequence[Sequence[int]], slots: Sequence[int]
) -> tuple[Layout, MixedNumbers]:
    """A step of sequences as `engine.core.mixed_graphs` sends it, with room left over."""
    layout = Layout(singles=4, tokens=256, max_blocks=8)
    chunks = []
    for length, context, own, slot in zip(lens, contexts, blocks, slots, strict=True):
        request = Request("r", (0,) * context, SamplingParams())
        sequence = SequenceState(request, [0] * context, Random(0), TextStream(None, ()))  # type: ignore[arg-type]
        sequence.blocks, sequence.slot, sequence.computed = list(own), slot, context - length
        chunks.append(Chunk(sequence, length))
    buffer = np.zeros(layout.length, dtype=np.int32)
    fill(buffer, layout, chunks, block_size=16)
    sent = torch.from_numpy(buffer).to(DEVICE)
    fields = layout.views(sent)
    tables, states = sent[layout.header :], fields["states"].long()
    rest = (fields["runs"], fields["chunks"], fields["places"])
    return layout, MixedNumbers(
        fields["singles"][4], fields["contexts"], tables, fields["width"], layout.tokens, states, *rest
    )


def test_rows_of_nobody_change_nothing() -> None:
    """A step laid out in fixed places against the same step as it is; the rows left over hold what is no number."""
    lens, contexts, slots = (1, 70, 1, 3), (40, 100, 17, 3), (2, 0, 1, 5)
    blocks = ([3, 1, 0], list(range(4, 11)), [11, 12], [13])
    layout, numbers = mixed_numbers(lens, contexts, blocks, slots)
    plan, run_plan = triton.plan_mixed(numbers)
    tables = torch.tensor([own + [0] * (7 - len(own)) for own in blocks], dtype=torch.int32, device=DEVICE)
    plain = triton.plan_attention(tables, lens, contexts, 16)
    where = [0, *range(4, 74), 1, *range(74, 77)]
    keys, values = randn(16, 16, 2, 32, dtype=KV), randn(16, 16, 2, 32, dtype=KV)
    query = torch.full((layout.singles + layout.tokens, 4, 32), float("nan"), device=DEVICE, dtype=KV)
    query[where] = randn(75, 4, 32, dtype=KV)
    got = triton.paged_attention(query, keys, values, plan, 0.2)
    want = triton.paged_attention(query[where].contiguous(), keys, values, plain, 0.2)
    assert torch.equal(got[where], want)
    others = [row for row in range(len(query)) if row not in where]
    assert not got[others].count_nonzero()

    layer = Layer(2, 4, 32, slots=6)
    run_slots = torch.tensor([0, 5], device=DEVICE)
    qkvz, ba = layer.inputs(layout.tokens)
    states = [(layer.window.clone(), layer.recurrent.clone()) for _ in range(2)]
    got = triton.delta_net_runs(qkvz, ba, layer.weights, *states[0], run_plan, KV)
    want = triton.delta_net_runs(
        qkvz[:73], ba[:73], layer.weights, *states[1], triton.plan_runs((70, 3), run_slots), KV
    )
    assert torch.equal(got[:73], want)
    assert not got[73:].count_nonzero()
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))
