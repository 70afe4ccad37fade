"""The training model against transformers' float32 Qwen3NextForCausalLM, and its parts against plain formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from nano.delta_rule import chunked_delta_rule, unit_lower_inverse
from nano.layers import experts, route, router_losses, unit
from nano.model import Nano, initialise
from nano.shape import CHUNK, NANO, model_config

SMALL: dict[str, Any] = dict(NANO) | {
    "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 8,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "rms_norm_eps": 1e-3,
}  # fmt: skip


@torch.no_grad()
def scrambled(values: dict[str, Any], seed: int = 3) -> Nano:
    """Every weight random, so that a wrong term shows; an eps of 1e-3 keeps the oracle's own rounding small."""
    model = Nano(values)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            continue
        weight.copy_(torch.randn(weight.shape, generator=generator) * (0.1 if weight.ndim > 1 else 0.2))
        if name.endswith("linear_attn.norm.weight"):
            weight.add_(1)
    return model


def oracle(model: Nano) -> Qwen3NextForCausalLM:
    theirs = Qwen3NextForCausalLM(Qwen3NextConfig(**model.values)).float().eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs


def text(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 63, 64, 200])
def test_logits_equal_transformers(length: int) -> None:
    model = scrambled(SMALL)
    ids = text(length)
    with torch.no_grad():
        want = oracle(model)(ids[None], use_cache=False).logits[0]
    assert want.abs().max() > 1
    assert (model.logits(ids) - want).abs().max() < 1e-4


def test_gradients_equal_transformers() -> None:
    """Of the loss on masked tokens alone, in every parameter, through padding and two texts of unlike length."""
    model = scrambled(SMALL)
    theirs = oracle(model)
    first, second = text(150, 1), text(90, 2)
    ids = torch.zeros(2, 3 * CHUNK, dtype=torch.int64)
    ids[0, :150], ids[1, :90] = first, second
    valid = torch.zeros(2, 3 * CHUNK)
    valid[0, :150], valid[1, :90] = 1, 1
    places = torch.tensor([20, 21, 148, 192 + 10, 192 + 88])
    shape = (2, 3, CHUNK)
    loss = model(ids.view(shape), valid.view(shape), places, ids.flatten()[places + 1]).losses.mean()
    loss.backward()
    logits = torch.cat([theirs(row[None], use_cache=False).logits[0] for row in (first, second)])
    rows = torch.tensor([20, 21, 148, 150 + 10, 150 + 88])
    want = torch.nn.functional.cross_entropy(logits[rows], torch.cat((first, second))[rows + 1])
    want.backward()
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    ours = dict(model.named_parameters())
    for name, weight in theirs.named_parameters():
        assert weight.grad is not None
        assert ours[name].grad is not None
        scale = weight.grad.abs().max().clamp(min=1e-3)
        assert ((ours[name].grad - weight.grad).abs().max() / scale) < 2e-3, name


def test_recomputing_layers_changes_no_gradient() -> None:
    ids = text(4 * CHUNK).view(2, 2, CHUNK)
    places = torch.arange(100)
    grads = []
    for recompute in (False, True):
        model = scrambled(SMALL)
        model.recompute = recompute
        model(ids, torch.ones(ids.shape), places, ids.flatten()[places + 1]).losses.mean().backward()
        grads.append([weight.grad for weight in model.parameters()])
    for mine, again in zip(*grads, strict=True):
        assert mine is not None
        assert torch.allclose(mine, again)


def by_steps(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The rule token by token, in float64: the formula itself."""
    q, k, v, g, beta = (x.double().flatten(1, 2) for x in (q, k, v, g, beta))
    repeat = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(repeat, 2), k.repeat_interleave(repeat, 2)
    state = torch.zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3], dtype=torch.float64)
    rows = []
    for t in range(v.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        change = beta[:, t, :, None] * (v[:, t] - (state * k[:, t, :, :, None]).sum(-2))
        state = state + k[:, t, :, :, None] * change.unsqueeze(-2)
        rows.append((state * q[:, t, :, :, None]).sum(-2))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("same_keys", [False, True])
def test_chunked_rule_equals_the_rule_by_steps(same_keys: bool) -> None:
    """Values and gradients; also where one key comes again and again undecayed, the worst case of the solve."""
    torch.manual_seed(1)
    chunks, heads = 3, 2
    q, k = (unit(torch.randn(2, chunks, CHUNK, heads, 16)) for _ in range(2))
    v = torch.randn(2, chunks, CHUNK, 2 * heads, 8)
    g, beta = -0.1 * torch.rand(v.shape[:-1]), torch.rand(v.shape[:-1])
    if same_keys:
        k, g, beta = k[:, :1, :1].expand(k.shape).clone(), torch.zeros_like(g), torch.full_like(beta, 0.99)
    inputs = [x.requires_grad_() for x in (q, k, v, g, beta)]
    output, want = chunked_delta_rule(*inputs), by_steps(*inputs)
    assert (output.flatten(1, 2) - want).abs().max() < 1e-4
    weight = torch.randn(want.shape, dtype=torch.float64)
    got = torch.autograd.grad((output.flatten(1, 2) * weight).sum(), inputs)
    for mine, theirs in zip(got, torch.autograd.grad((want * weight).sum(), inputs), strict=True):
        assert (mine - theirs).abs().max() < 1e-3 * theirs.abs().max().clamp(min=1)


def test_inverse_of_unit_lower_triangles() -> None:
    system = torch.rand(3, CHUNK, CHUNK).tril(-1)
    want = torch.linalg.inv(torch.eye(CHUNK, dtype=torch.float64) + system.double())
    assert (unit_lower_inverse(system) - want).abs().max() < 1e-4


def test_ties_choose_the_first_experts() -> None:
    weights, _ = route(torch.zeros(1, 8), 2, True)
    assert weights.tolist() == [[0.5, 0.5, 0, 0, 0, 0, 0, 0]]


def test_balance_loss_is_one_when_even_and_pushes_load_away_from_a_crowded_expert() -> None:
    valid = torch.ones(4)
    even = torch.eye(4) * 4
    losses, share = router_losses(even, even.softmax(-1), even > 0, valid)
    assert share.tolist() == [0.25] * 4
    assert losses[0].item() == pytest.approx(1.0)
    crowded = torch.tensor([[3.0, 0, 0, 0]] * 4).requires_grad_()
    losses, _ = router_losses(crowded, crowded.softmax(-1), crowded > 0, valid)
    losses[0].backward()
    assert losses[0] > 2
    assert crowded.grad is not None
    assert (crowded.grad[:, 0] > 0).all()
    assert (crowded.grad[:, 1:] < 0).all()


def test_padding_does_not_count_in_the_routers_losses() -> None:
    model = scrambled(SMALL)
    layer, stream = model.model.layers[0], torch.randn(1, 2, CHUNK, 64)
    weights = (layer.post_attention_layernorm.weight, *layer.mlp.tensors())
    valid = torch.zeros(1, 2, CHUNK)
    valid[:, :1] = 1
    _, padded, share = experts(stream, *weights, valid, model.numbers)
    _, alone, want = experts(stream[:, :1], *weights, valid[:, :1], model.numbers)
    assert torch.allclose(padded, alone, atol=1e-6)
    assert torch.allclose(share, want)


def test_parameters_are_counted_as_the_issue_asks() -> None:
    count = sum(weight.numel() for weight in Nano().parameters())
    assert 8e6 < count < 12e6
    assert model_config().layer_types.count("full_attention") == 2
