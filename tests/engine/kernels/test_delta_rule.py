"""Gated DeltaNet kernels against transformers' functions and against the recurrence written out in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_next import modeling_qwen3_next as hf

from engine.kernels import cpu, cuda, reference
from engine.kernels.ops import Kernels
from engine.kernels.reference_delta import DeltaWeights

FAMILIES = [
    pytest.param(kernels, id=name) for kernels, name in ((reference, "reference"), (cpu, "cpu"), (cuda, "cuda"))
]
LENS = [(1,), (64,), (130,), (1, 65, 3), (200, 64, 63, 1), (5, 5)]
HEADS = [(2, 2), (2, 4), (1, 3)]
KEY, VALUE, SLOTS = 16, 8, 7


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@dataclass
class Inputs:
    """Random tokens of several sequences, one after another, whose states lie in scattered slots."""

    lens: tuple[int, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    state: Tensor
    slots: Tensor

    @classmethod
    def of(cls, lens: tuple[int, ...], key_heads: int, value_heads: int) -> "Inputs":
        """Decays from almost none to e^-60 a token, so that a chunk's running sum would overflow e^-G."""
        tokens = sum(lens)
        return cls(
            lens,
            torch.randn(tokens, key_heads, KEY),
            torch.randn(tokens, key_heads, KEY),
            torch.randn(tokens, value_heads, VALUE),
            -torch.rand(tokens, value_heads) * torch.tensor([0.01, 60.0, 1.0, 0.1])[:value_heads],
            torch.rand(tokens, value_heads),
            torch.randn(SLOTS, value_heads, KEY, VALUE),
            torch.randperm(SLOTS)[: len(lens)],
        )

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        return self.q, self.k, self.v, self.g, self.beta

    def sequences(self) -> list[tuple[Tensor, ...]]:
        return list(zip(*(torch.split(x, list(self.lens)) for x in self.tokens), strict=True))


def chunked(kernels: Kernels, inputs: Inputs) -> tuple[Tensor, Tensor]:
    state = inputs.state.clone()
    plan = kernels.plan_runs(inputs.lens, inputs.slots)
    return kernels.delta_rule_chunked(*inputs.tokens, state, plan), state


def written_out(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The recurrence of the module's docstring, token by token in float64."""
    state, outputs = inputs.state.double(), []
    for slot, sequence in zip(inputs.slots.tolist(), inputs.sequences(), strict=True):
        q, k, v, g, beta = (x.double() for x in sequence)
        group = v.shape[1] // k.shape[1]
        unit = [(x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).repeat_interleave(group, 1) for x in (q, k)]
        memory = state[slot]
        for query, key, value, decay, strength in zip(*unit, v, g, beta, strict=True):
            memory = decay.exp()[:, None, None] * memory
            change = strength[:, None] * (value - torch.einsum("hkv,hk->hv", memory, key))
            memory = memory + torch.einsum("hk,hv->hkv", key, change)
            outputs.append(torch.einsum("hkv,hk->hv", memory, query) * KEY**-0.5)
        state[slot] = memory
    return torch.stack(outputs), state


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want.float(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lens", LENS)
def test_chunked_rule_is_the_recurrence(kernels: Kernels, lens: tuple[int, ...], heads: tuple[int, int]) -> None:
    inputs = Inputs.of(lens, *heads)
    output, state = chunked(kernels, inputs)
    want_output, want_state = written_out(inputs)
    close(output, want_output)
    close(state, want_state)


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("slots", [[0], [4], [2, 3, 4], [5, 0, 3]])
def test_step_is_the_recurrence(kernels: Kernels, slots: list[int], heads: tuple[int, int]) -> None:
    inputs = Inputs.of((1,) * len(slots), *heads)
    inputs.slots = torch.tensor(slots)
    state = inputs.state.clone()
    output = kernels.delta_rule_step(*inputs.tokens, state, inputs.slots)
    want_output, want_state = written_out(inputs)
    close(output, want_output)
    close(state, want_state)


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("name", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_rule_equals_transformers(kernels: Kernels, name: str) -> None:
    inputs = Inputs.of((150, 37), 2, 4)
    output, state = chunked(kernels, inputs)
    oracle = getattr(hf, name)
    rows = torch.split(output, list(inputs.lens))
    for slot, sequence, got in zip(inputs.slots.tolist(), inputs.sequences(), rows, strict=True):
        q, k, v, g, beta = (x[None] for x in sequence)
        q, k = (x.repeat_interleave(2, dim=2) for x in (q, k))
        want, after = oracle(
            q, k, v, g=g, beta=beta, initial_state=inputs.state[[slot]], output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        torch.testing.assert_close(got, want[0], atol=5e-6, rtol=5e-5)
        torch.testing.assert_close(state[slot], after[0], atol=5e-6, rtol=5e-5)


@pytest.mark.parametrize("kernels", FAMILIES)
def test_bfloat16_state_is_rounded_once_a_step(kernels: Kernels) -> None:
    inputs = Inputs.of((1, 1), 2, 4)
    inputs.state = inputs.state.bfloat16()
    state = inputs.state.clone()
    output = kernels.delta_rule_step(*inputs.tokens, state, inputs.slots)
    want_output, want_state = written_out(inputs)
    close(output, want_output)
    torch.testing.assert_close(state, want_state.bfloat16(), atol=0, rtol=0.008)
    run_output, run_state = chunked(kernels, inputs)
    close(run_output, want_output)
    assert run_state.dtype == torch.bfloat16


@pytest.mark.parametrize("kernels", FAMILIES)
@pytest.mark.parametrize("width", [2, 4])
def test_convolution_equals_torch(kernels: Kernels, width: int) -> None:
    """Runs of 5, 1 and 2 tokens, shorter than the window too, then one more token each."""
    channels, lens, slots = 12, (5, 1, 2), torch.tensor([3, 0, 2])
    x, last, weight = torch.randn(8, channels), torch.randn(3, channels), torch.randn(channels, width)
    window = torch.randn(4, channels, width - 1)
    before, untouched = window.clone(), window[1].clone()
    run = torch.split(kernels.causal_conv(x, weight, window, kernels.plan_runs(lens, slots)), lens)
    step = kernels.causal_conv_step(last, weight, window, slots)
    for i, (slot, tokens) in enumerate(zip(slots.tolist(), torch.split(x, lens), strict=True)):
        known = torch.cat((before[slot], tokens.t(), last[i : i + 1].t()), dim=1)
        want = F.silu(F.conv1d(known[None], weight[:, None], groups=channels))[0].t()
        torch.testing.assert_close(torch.cat((run[i], step[i : i + 1])), want, atol=1e-6, rtol=1e-5)
        assert torch.equal(window[slot], known[:, known.shape[1] - width + 1 :])
    assert torch.equal(window[1], untouched)


@pytest.mark.parametrize("kernels", FAMILIES)
def test_gates_and_gated_norm(kernels: Kernels) -> None:
    a, b, rate, bias = torch.randn(5, 4), torch.randn(5, 4), torch.rand(4) * 16, torch.randn(4)
    g, beta = kernels.delta_gates(a, b, rate, bias)
    torch.testing.assert_close(g, -rate * torch.log1p((a + bias).exp()))
    torch.testing.assert_close(beta, 1 / (1 + (-b).exp()))
    x, gate = torch.randn(5, 4, VALUE), torch.randn(5, 4, VALUE)
    norm = hf.Qwen3NextRMSNormGated(VALUE, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    got = kernels.gated_rms_norm(x, gate, norm.weight.detach(), 1e-3, torch.float32)
    torch.testing.assert_close(got, norm(x, gate).detach())


@pytest.mark.parametrize("kernels", [pytest.param(cpu, id="cpu"), pytest.param(cuda, id="cuda")])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("slots", [[4], [5, 0, 3]])
@pytest.mark.parametrize("narrow", [False, True])
def test_whole_step_equals_its_parts(kernels: Kernels, slots: list[int], heads: tuple[int, int], narrow: bool) -> None:
    key_heads, value_heads = heads
    keys, values = key_heads * KEY, value_heads * VALUE
    channels, batch, dtype = 2 * keys + values, len(slots), torch.bfloat16 if narrow else torch.float32
    weights = DeltaWeights(
        torch.randn(channels, 4),
        4 * torch.rand(value_heads),
        torch.randn(value_heads),
        torch.rand(VALUE),
        1e-6,
        key_heads,
    )
    qkvz, ba = torch.randn(batch, channels + values), 9 * torch.randn(batch, 2 * value_heads)
    before = torch.randn(SLOTS, channels, 3).to(dtype), torch.randn(SLOTS, value_heads, KEY, VALUE).to(dtype)
    caches = [[tensor.clone() for tensor in before] for _ in range(2)]
    torch.full((batch, value_heads, VALUE), float("nan"))  # freed at once: likely the memory of the result
    got, want = (
        family.delta_net_step(qkvz, ba, weights, *cache, torch.tensor(slots), torch.float32)
        for family, cache in zip((kernels, reference), caches, strict=True)
    )
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-5)
    assert torch.equal(caches[0][0], caches[1][0])
    torch.testing.assert_close(caches[0][1], caches[1][1], atol=1e-6, rtol=0.008 if narrow else 2e-5)
    idle = [slot for slot in range(SLOTS) if slot not in slots]
    assert torch.equal(caches[0][1][idle], before[1][idle])
