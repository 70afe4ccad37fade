"""Which tensors an architecture has: canonical (Hugging Face) names, shapes and classes, in reading order."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.config import ModelConfig
from engine.quant.formats import TensorClass


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a model of some configuration must have.

    Shapes are those in memory: matrices [out, in], experts stacked [E, out, in] under `...experts.gate_up_proj`
    (gate rows, then up rows) and `...experts.down_proj`, everything else as in the checkpoint.
    """

    name: str
    tensor_class: TensorClass
    shape: tuple[int, ...]


def tensor_specs(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of the model; a tied lm_head is the embedding and so is not listed."""
    hidden, vocab = config.hidden_size, config.vocab_size
    specs = [TensorSpec("model.embed_tokens.weight", "embedding", (vocab, hidden))]
    for layer in range(config.num_layers):
        specs.extend(_layer_specs(config, layer))
    specs.append(TensorSpec("model.norm.weight", "norm", (hidden,)))
    if not config.tie_word_embeddings:
        specs.append(TensorSpec("lm_head.weight", "lm_head", (vocab, hidden)))
    return specs


def _layer_specs(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    prefix = f"model.layers.{layer}."
    yield TensorSpec(prefix + "input_layernorm.weight", "norm", (config.hidden_size,))
    linear_layer = config.layer_types[layer] == "linear_attention"
    yield from _delta_net_specs(config, prefix) if linear_layer else _attention_specs(config, prefix)
    yield TensorSpec(prefix + "post_attention_layernorm.weight", "norm", (config.hidden_size,))
    yield from _moe_specs(config, prefix) if config.num_experts else _dense_specs(config, prefix)


def _attention_specs(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    hidden, prefix = config.hidden_size, prefix + "self_attn."
    query = config.num_attention_heads * config.head_dim
    rows = {
        "q_proj": query * (2 if config.attention_output_gate else 1),
        "k_proj": config.num_kv_heads * config.head_dim,
        "v_proj": config.num_kv_heads * config.head_dim,
    }
    for name, out in rows.items():
        yield TensorSpec(f"{prefix}{name}.weight", "linear", (out, hidden))
    yield TensorSpec(f"{prefix}o_proj.weight", "linear", (hidden, query))
    if config.attention_bias:
        for name, out in (rows | {"o_proj": hidden}).items():
            yield TensorSpec(f"{prefix}{name}.bias", "vector", (out,))
    if config.qk_norm:
        yield TensorSpec(f"{prefix}q_norm.weight", "norm", (config.head_dim,))
        yield TensorSpec(f"{prefix}k_norm.weight", "norm", (config.head_dim,))


def _delta_net_specs(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    hidden, prefix = config.hidden_size, prefix + "linear_attn."
    key = config.linear_num_key_heads * config.linear_key_head_dim
    heads = config.linear_num_value_heads
    value = heads * config.linear_value_head_dim
    yield TensorSpec(prefix + "in_proj_qkvz.weight", "linear", (2 * key + 2 * value, hidden))
    yield TensorSpec(prefix + "in_proj_ba.weight", "delta_ba", (2 * heads, hidden))
    yield TensorSpec(prefix + "conv1d.weight", "conv", (2 * key + value, 1, config.linear_conv_kernel))
    yield TensorSpec(prefix + "A_log", "vector", (heads,))
    yield TensorSpec(prefix + "dt_bias", "vector", (heads,))
    yield TensorSpec(prefix + "norm.weight", "norm", (config.linear_value_head_dim,))
    yield TensorSpec(prefix + "out_proj.weight", "linear", (hidden, value))


def _dense_specs(config: ModelConfig, prefix: str, rows: int = 0) -> Iterator[TensorSpec]:
    hidden, inner = config.hidden_size, rows or config.intermediate_size
    prefix += "mlp.shared_expert." if rows else "mlp."
    yield TensorSpec(prefix + "gate_proj.weight", "linear", (inner, hidden))
    yield TensorSpec(prefix + "up_proj.weight", "linear", (inner, hidden))
    yield TensorSpec(prefix + "down_proj.weight", "linear", (hidden, inner))


def _moe_specs(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    hidden, inner, count = config.hidden_size, config.moe_intermediate_size, config.num_experts
    yield TensorSpec(prefix + "mlp.gate.weight", "router", (count, hidden))
    yield TensorSpec(prefix + "mlp.experts.gate_up_proj", "expert", (count, 2 * inner, hidden))
    yield TensorSpec(prefix + "mlp.experts.down_proj", "expert", (count, hidden, inner))
    yield from _dense_specs(config, prefix, config.shared_expert_intermediate_size)
    yield TensorSpec(prefix + "mlp.shared_expert_gate.weight", "shared_expert_gate", (1, hidden))
