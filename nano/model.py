"""sweq-nano for training: plain torch, parameters named and shaped as in transformers' Qwen3NextForCausalLM.

Autograd writes the backward pass; `torch.compile` may fuse the functions of `nano.layers` and `nano.delta_rule`, whose
boundaries are where a sequential step (the solve, the scan over chunks) or a library's kernel stands.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.config import ModelConfig
from engine.errors import UserError
from nano import delta_rule, layers
from nano.delta_rule import Scan, Solve
from nano.layers import Numbers
from nano.shape import CHUNK, NANO, model_config

Rule = Literal["own", "fla"]
_CUT = ("cut", "unit_lower_inverse", "transitions", "read")
_PARTS = ("delta_inputs", "delta_output", "attention", "experts", "predictions")


@dataclass(frozen=True)
class Prediction:
    """Of one step, on the device: each target's loss [M] and whether it is the likeliest token [M], the routers' mean
    losses [2], each layer's expert shares [layers, E]."""

    losses: Tensor
    hits: Tensor
    routers: Tensor
    shares: Tensor


class Functions:
    """The functions that a forward pass is made of, each compiled for any number of texts and chunks if wished."""

    def __init__(self, compiled: bool = False) -> None:
        if compiled:
            # Axes that happen to be equal in the first batch must not be taken for one.
            torch.fx.experimental._config.use_duck_shape = False
        self.compiled = compiled
        prepare = _compiled if compiled else _plain
        self.parts = {name: prepare(getattr(layers, name)) for name in _PARTS}
        self.parts |= {name: prepare(getattr(delta_rule, name)) for name in _CUT}
        self.parts["unit_heads"] = prepare(unit_heads)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.parts[name]


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for any extent of the first two axes, texts and chunks in either order, of what is no parameter."""
    fast = torch.compile(function)

    def free_axes(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(free_axes(item) for item in value)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            for axis in range(min(2, value.ndim)):
                torch._dynamo.maybe_mark_dynamic(value, axis)
        return value

    def call(*values: object) -> Any:
        return fast(*(free_axes(value) for value in values))

    return call


def unit_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of unit length, queries scaled by K^-0.5, and values: float32."""
    return layers.unit(q) * q.shape[-1] ** -0.5, layers.unit(k), v.float()


class Weight(nn.Module):
    """A holder of one parameter called `weight`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class Experts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, inner, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.zeros(count, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.zeros(count, hidden, inner))


class SharedExpert(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner, hidden = config.shared_expert_intermediate_size, config.hidden_size
        self.gate_proj, self.up_proj = Weight(inner, hidden), Weight(inner, hidden)
        self.down_proj = Weight(hidden, inner)


class MixtureOfExperts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Weight(config.num_experts, config.hidden_size)
        self.experts, self.shared_expert = Experts(config), SharedExpert(config)
        self.shared_expert_gate = Weight(1, config.hidden_size)

    def tensors(self) -> tuple[Tensor, ...]:
        shared = self.shared_expert
        shared_weights = (shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
        own = (self.gate.weight, self.experts.gate_up_proj, self.experts.down_proj)
        return (*own, *shared_weights, self.shared_expert_gate.weight)


class DeltaNet(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        heads = config.linear_num_value_heads
        values = heads * config.linear_value_head_dim
        self.in_proj_qkvz = Weight(2 * keys + 2 * values, config.hidden_size)
        self.in_proj_ba = Weight(2 * heads, config.hidden_size)
        self.conv1d = Weight(2 * keys + values, 1, config.linear_conv_kernel)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))
        self.norm = Weight(config.linear_value_head_dim)
        self.out_proj = Weight(config.hidden_size, values)

    def forward(self, h: Tensor, norm: Tensor, functions: Functions, numbers: Numbers, rule: "DeltaRule") -> Tensor:
        projections = (self.in_proj_qkvz.weight, self.in_proj_ba.weight, self.conv1d.weight)
        q, k, v, z, g, beta = functions["delta_inputs"](h, norm, *projections, self.A_log, self.dt_bias, numbers)
        output = rule(functions, q, k, v, g, beta)
        result: Tensor = functions["delta_output"](h, output, z, self.norm.weight, self.out_proj.weight, numbers)
        return result


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.head_dim
        query, keys = config.num_attention_heads * width, config.num_kv_heads * width
        self.q_proj, self.k_proj, self.v_proj = Weight(2 * query, hidden), Weight(keys, hidden), Weight(keys, hidden)
        self.o_proj = Weight(hidden, query)
        self.q_norm, self.k_norm = Weight(width), Weight(width)

    def forward(self, h: Tensor, norm: Tensor, functions: Functions, numbers: Numbers) -> Tensor:
        cos, sin = layers.rotary(h.shape[1] * h.shape[2], numbers.config, h.device)
        matrices = (self.q_proj, self.k_proj, self.v_proj, self.o_proj, self.q_norm, self.k_norm)
        weights = (holder.weight for holder in matrices)
        result: Tensor = functions["attention"](h, norm, *weights, cos, sin, numbers)
        return result


class Layer(nn.Module):
    def __init__(self, kind: str, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = Weight(config.hidden_size)
        if kind == "linear_attention":
            self.linear_attn = DeltaNet(config)
        else:
            self.self_attn = Attention(config)
        self.post_attention_layernorm = Weight(config.hidden_size)
        self.mlp = MixtureOfExperts(config)

    def forward(
        self, h: Tensor, valid: Tensor, functions: Functions, numbers: Numbers, rule: "DeltaRule"
    ) -> tuple[Tensor, Tensor, Tensor]:
        norm = self.input_layernorm.weight
        if hasattr(self, "linear_attn"):
            h = self.linear_attn(h, norm, functions, numbers, rule)
        else:
            h = self.self_attn(h, norm, functions, numbers)
        weights = (self.post_attention_layernorm.weight, *self.mlp.tensors())
        result: tuple[Tensor, Tensor, Tensor] = functions["experts"](h, *weights, valid, numbers)
        return result


class Body(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Weight(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(kind, config) for kind in config.layer_types)
        self.norm = Weight(config.hidden_size)


class DeltaRule:
    """The gated delta rule: our own in torch, or the kernels of the package fla-core ("fla", CUDA only)."""

    def __init__(self, kind: Rule = "own") -> None:
        self.fla = _fla_rule() if kind == "fla" else None

    def __call__(self, functions: Functions, *inputs: Tensor) -> Tensor:
        """[B, N, C, Hv, V] from q, k, v, g and β as `layers.delta_inputs` gives them."""
        q, k, v, g, beta = inputs
        if self.fla is not None:
            flat = [x.flatten(1, 2).contiguous() for x in (q, k, v, g, beta)]
            output: Tensor = self.fla(*flat, use_qk_l2norm_in_kernel=True)[0]
            return output.view(v.shape)
        q, k, v = functions["unit_heads"](q, k, v)
        chunks = functions["cut"](q, k, v, g, beta)
        system, right, _, _, written, decay = chunks
        with torch.no_grad():
            inverse = functions["unit_lower_inverse"](system)
        solved = Solve.apply(system, right, inverse)  # type: ignore[no-untyped-call]
        moved = functions["transitions"](solved, written, decay, v.shape[-1])
        states = Scan.apply(*moved)  # type: ignore[no-untyped-call]
        states = torch.unflatten(states, 1, system.shape[1:4])
        result: Tensor = functions["read"](chunks, solved, states)
        return result


def _fla_rule() -> Callable[..., tuple[Tensor, Any]]:
    if not torch.cuda.is_available():
        raise UserError("--delta fla: its kernels need a CUDA device; --delta own runs anywhere")
    try:
        rule: Callable[..., tuple[Tensor, Any]] = importlib.import_module(
            "fla.ops.gated_delta_rule"
        ).chunk_gated_delta_rule
    except ImportError as error:
        raise UserError(f"--delta fla: the package fla-core cannot be imported ({error}); use --delta own") from error
    return rule


class Nano(nn.Module):
    """The model; `dtype` is that of the matrix products, parameters are float32. `forward` predicts a batch."""

    def __init__(
        self,
        values: Mapping[str, Any] = NANO,
        dtype: torch.dtype = torch.float32,
        rule: Rule = "own",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        config = model_config(values)
        self.values, self.numbers = dict(values), Numbers(config, dtype)
        self.functions, self.rule = Functions(compiled), DeltaRule(rule)
        self.recompute = False  # keep only the stream between layers for backward: slower, in a fraction of the memory
        self.model = Body(config)
        self.lm_head = Weight(config.vocab_size, config.hidden_size)

    @property
    def config(self) -> ModelConfig:
        return self.numbers.config

    def hidden(self, token_ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The stream after all layers [B, N, C, hidden], the routers' mean losses [2] and shares [layers, E].

        `token_ids` is int64 [B, N, CHUNK], `valid` float32 of the same shape, 0 on padding.
        """
        h = nn.functional.embedding(token_ids, self.model.embed_tokens.weight)
        losses, shares = [], []
        for layer in self.model.layers:
            inputs = (h, valid, self.functions, self.numbers, self.rule)
            h, loss, share = checkpoint(layer, *inputs, use_reentrant=False) if self.recompute else layer(*inputs)
            losses.append(loss)
            shares.append(share)
        return h, torch.stack(losses).mean(0), torch.stack(shares)

    def forward(self, token_ids: Tensor, valid: Tensor, places: Tensor, targets: Tensor) -> Prediction:
        """How well `targets` int64 [M] are predicted after the flat tokens `places` int64 [M]; see `hidden`."""
        h, routers, shares = self.hidden(token_ids, valid)
        last = (self.model.norm.weight, self.lm_head.weight, self.numbers)
        losses, hits = self.functions["predictions"](h, places, targets, *last)
        return Prediction(losses, hits, routers, shares)

    @torch.no_grad()
    def logits(self, token_ids: Tensor) -> Tensor:
        """Float32 logits [L, vocab] of one text, int64 [L] of any length."""
        length = token_ids.shape[0]
        padded = nn.functional.pad(token_ids, (0, -length % CHUNK)).view(1, -1, CHUNK)
        h, _, _ = self.hidden(padded, torch.ones(padded.shape, device=padded.device))
        rows = layers.rms_norm(h.flatten(0, 2)[:length], self.model.norm.weight, self.config.rms_norm_eps)
        return layers.linear(rows.to(self.numbers.dtype), self.lm_head.weight).float()


@torch.no_grad()
def initialise(model: Nano, seed: int) -> None:
    """Draw the weights: matrices of gain 1, what writes to the stream zero, slow and fast decays in every layer.

    The step size of DeltaNet's decay is log-uniform in [0.001, 0.1] and its rate uniform in [1, 16], as in Mamba 2
    (Dao and Gu 2024): of the constant bias that transformers draws, nothing would be remembered at first.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, values in model.named_parameters():
        part = name.rsplit(".", 2)[-2]
        if name.endswith("A_log"):
            values.uniform_(1.0, 16.0, generator=generator).log_()
        elif name.endswith("dt_bias"):
            step = torch.empty_like(values).uniform_(math.log(1e-3), math.log(0.1), generator=generator).exp()
            values.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        elif name.endswith("linear_attn.norm.weight"):
            values.fill_(1.0)
        elif part == "embed_tokens":
            values.normal_(0.0, 0.1, generator=generator)
        elif part == "conv1d":
            values.uniform_(-0.5, 0.5, generator=generator)
        elif values.ndim > 1 and not (part in ("o_proj", "out_proj", "lm_head") or "down_proj" in name):
            values.normal_(0.0, values.shape[-1] ** -0.5, generator=generator)
