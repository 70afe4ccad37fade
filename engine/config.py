"""What a model is (`ModelConfig`) and how it is served (`EngineConfig`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import CheckpointError

LayerType = Literal["full_attention", "linear_attention"]
Architecture = Literal["llama", "qwen3_next"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder, always read from the checkpoint (`config.json` or GGUF metadata), never from defaults.

    Fields from `linear_num_key_heads` on are 0 for architectures without DeltaNet layers or experts. `rope_factors`
    (`rotary_dim / 2` of them) divide the inverse frequencies of the rotary embedding.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    layer_types: tuple[LayerType, ...]
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position: int
    tie_word_embeddings: bool
    attention_bias: bool = False
    attention_output_gate: bool = False
    qk_norm: bool = False
    rope_factors: tuple[float, ...] | None = None
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_conv_kernel: int = 0
    num_experts: int = 0
    num_experts_per_token: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool = True

    @property
    def active_weights(self) -> int:
        """Weights in the matrix products of one token, but for the embedding and the head."""
        kinds = {"full_attention": self._attention_weights, "linear_attention": self._delta_net_weights}
        return sum(kinds[kind]() + self._mlp_weights() for kind in self.layer_types)

    def _attention_weights(self) -> int:
        query, keys = self.num_attention_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden_size * (query * (3 if self.attention_output_gate else 2) + 2 * keys)

    def _delta_net_weights(self) -> int:
        keys = self.linear_num_key_heads * self.linear_key_head_dim
        values = self.linear_num_value_heads * self.linear_value_head_dim
        return self.hidden_size * (2 * keys + 3 * values + 2 * self.linear_num_value_heads)

    def _mlp_weights(self) -> int:
        if not self.num_experts:
            return 3 * self.hidden_size * self.intermediate_size
        routed = self.num_experts_per_token * self.moe_intermediate_size
        return self.hidden_size * (3 * (routed + self.shared_expert_intermediate_size) + self.num_experts + 1)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str) -> "ModelConfig":
        """Read the mapping of a `config.json`; `where` names the file in errors (`CheckpointError`)."""
        keys = _Keys(config, where)
        kind = keys.text("model_type")
        if kind == "llama":
            return cls(**_llama_from_hf(keys))
        if kind == "qwen3_next":
            return cls(**_qwen3_next_from_hf(keys))
        raise CheckpointError(f"{where}: model_type {kind!r} is not supported; supported are llama and qwen3_next")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], where: str) -> "ModelConfig":
        """Read GGUF metadata; `where` names the file in errors (`CheckpointError`).

        `tie_word_embeddings` and `rope_factors` follow from which tensors the file holds: the loader replaces them.
        """
        architecture = _Keys(metadata, where).text("general.architecture")
        keys = _Keys(metadata, where, prefix=f"{architecture}.")
        if architecture == "llama":
            return cls(**_llama_from_gguf(keys))
        if architecture == "qwen3next":
            return cls(**_qwen3_next_from_gguf(keys))
        raise CheckpointError(
            f"{where}: general.architecture {architecture!r} is not supported; supported are llama and qwen3next"
        )


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine may hold and do at once.

    `num_blocks` None sizes the KV pool from free memory; `max_step_tokens` is the token budget of one step, shared by
    running decodes (one each) and chunked prefill, and None takes what suits the device; `max_context` None takes the
    model's own; `delta_state_dtype` is that of DeltaNet's recurrent state.

    `state_cache_bytes` and `host_state_cache_bytes` bound the snapshots of that state that are kept with prefixes, on
    the device and in host memory, and `swap_bytes` the copies of preempted sequences there; None takes a share of what
    is free. `deterministic` cuts prompts into tiles of `prefill_tile` tokens, a multiple of 64, and runs each sequence
    alone: slower, but on CPU the logits of a request are then the same, bit for bit, whatever is cached and whoever
    else is served. `cuda_graphs` False launches decode steps kernel by kernel. `decode_ahead` launches a decode step
    before the tokens of the last one are read (`engine.core.pipeline`), which pays where decode steps are graphs; it is
    off in a deterministic engine and over several ranks, and a wish until it has been measured on a GPU.

    `tensor_parallel_size` processes hold a share of each layer, on GPUs one each; a step that takes longer than
    `collective_timeout` seconds counts as a lost one.
    """

    block_size: int = 16
    num_blocks: int | None = None
    max_running: int = 32
    max_step_tokens: int | None = None
    max_context: int | None = None
    prefix_cache: bool = True
    state_cache_bytes: int | None = None
    host_state_cache_bytes: int | None = None
    swap_bytes: int | None = None
    deterministic: bool = False
    prefill_tile: int = 128
    delta_state_dtype: Literal["float32", "bfloat16"] = "float32"
    cuda_graphs: bool = True
    decode_ahead: bool = False
    tensor_parallel_size: int = 1
    collective_timeout: float = 120.0
    device: str = "cpu"

    @property
    def step_tokens(self) -> int:
        """The token budget of a step: a GPU needs more rows than a CPU before its multipliers are busy."""
        if self.max_step_tokens is not None:
            return self.max_step_tokens
        return 4096 if self.device.startswith("cuda") else 1024


class _Keys:
    """Typed reads from a mapping; every error is one line with the file, the key and what it should be."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix

    def get(self, key: str) -> Any:
        return self.values.get(self.prefix + key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: key {self.prefix + key!r} {problem}")

    def _typed(self, key: str, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self.get(key)
        if value is None:
            raise self.error(key, f"is missing; {wanted} is needed")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(key, f"is {value!r}; {wanted} is needed")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        if default is not None and not self.has(key):
            return default
        value = int(self._typed(key, (int,), "a positive integer"))
        if value <= 0:
            raise self.error(key, f"is {value}; a positive integer is needed")
        return value

    def number(self, key: str) -> float:
        return float(self._typed(key, (int, float), "a number"))

    def text(self, key: str) -> str:
        return str(self._typed(key, (str,), "a string"))

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self._typed(key, (bool,), "true or false")) if self.has(key) else default

    def only(self, key: str, *allowed: object) -> None:
        """Refuse a key whose value asks for something that the decoder does not do."""
        if self.has(key) and self.get(key) not in allowed:
            listed = " or ".join(repr(value) for value in allowed)
            raise self.error(key, f"is {self.get(key)!r}; only {listed} is supported")


def _decoder_from_hf(keys: _Keys) -> dict[str, Any]:
    keys.only("hidden_act", "silu")
    return {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": keys.integer("hidden_size"),
        "intermediate_size": keys.integer("intermediate_size"),
        "num_layers": keys.integer("num_hidden_layers"),
        "num_attention_heads": keys.integer("num_attention_heads"),
        "num_kv_heads": keys.integer("num_key_value_heads"),
        "rms_norm_eps": keys.number("rms_norm_eps"),
        "max_position": keys.integer("max_position_embeddings"),
        "tie_word_embeddings": keys.flag("tie_word_embeddings"),
        "attention_bias": keys.flag("attention_bias"),
    }


def _rope_keys(keys: _Keys) -> tuple[_Keys, _Keys]:
    """Where the rotary base and the scaling stand: newer files hold both in `rope_parameters`."""
    if keys.has("rope_parameters"):
        inner = _Keys(keys.get("rope_parameters"), f"{keys.where}: rope_parameters")
        return inner, inner
    return keys, _Keys(keys.get("rope_scaling") or {}, f"{keys.where}: rope_scaling")


def _rope_kind(scaling: _Keys) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _llama_from_hf(keys: _Keys) -> dict[str, Any]:
    keys.only("mlp_bias", False)
    fields = _decoder_from_hf(keys)
    head_dim = keys.integer("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    base, scaling = _rope_keys(keys)
    theta = base.number("rope_theta")
    kind = _rope_kind(scaling)
    if kind not in ("default", "llama3"):
        raise scaling.error("rope_type", f"is {kind!r}; only 'default' or 'llama3' is supported")
    return fields | {
        "architecture": "llama",
        "layer_types": ("full_attention",) * fields["num_layers"],
        "head_dim": head_dim,
        "rotary_dim": head_dim,
        "rope_theta": theta,
        "rope_factors": _llama3_factors(scaling, theta, head_dim) if kind == "llama3" else None,
    }


def _llama3_factors(scaling: _Keys, theta: float, rotary_dim: int) -> tuple[float, ...]:
    """Divisors of the inverse frequencies, as in Llama 3.1's published rotary scaling.

    Wavelengths below `original / high_freq_factor` stay, those above `original / low_freq_factor` are stretched by
    `factor`, and between them the frequency is interpolated linearly in `original / wavelength`.
    """
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    original = scaling.number("original_max_position_embeddings")

    def divisor(index: int) -> float:
        wavelength = 2 * math.pi * math.pow(theta, 2 * index / rotary_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        return 1.0 / (smooth + (1.0 - smooth) / factor)

    return tuple(divisor(index) for index in range(rotary_dim // 2))


def _layer_types(keys: _Keys, count: int) -> tuple[LayerType, ...]:
    if not keys.has("layer_types"):
        return _every_nth_full(count, keys.integer("full_attention_interval"))
    listed = tuple(keys.get("layer_types"))
    if len(listed) != count or not set(listed) <= {"full_attention", "linear_attention"}:
        raise keys.error("layer_types", f"must name full_attention or linear_attention for each of {count} layers")
    return listed


def _every_nth_full(count: int, interval: int) -> tuple[LayerType, ...]:
    return tuple("full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(count))


def _qwen3_next_from_hf(keys: _Keys) -> dict[str, Any]:
    keys.only("decoder_sparse_step", 1)
    keys.only("mlp_only_layers", [])
    keys.only("attention_bias", False)
    fields = _decoder_from_hf(keys)
    base, scaling = _rope_keys(keys)
    kind = _rope_kind(scaling)
    if kind != "default":
        raise scaling.error("rope_type", f"is {kind!r}; only 'default' is supported")
    head_dim = keys.integer("head_dim")
    partial = base if base.has("partial_rotary_factor") else keys
    return fields | {
        "architecture": "qwen3_next",
        "layer_types": _layer_types(keys, fields["num_layers"]),
        "head_dim": head_dim,
        "rotary_dim": int(head_dim * partial.number("partial_rotary_factor")),
        "rope_theta": base.number("rope_theta"),
        "attention_output_gate": True,
        "qk_norm": True,
        "linear_num_key_heads": keys.integer("linear_num_key_heads"),
        "linear_num_value_heads": keys.integer("linear_num_value_heads"),
        "linear_key_head_dim": keys.integer("linear_key_head_dim"),
        "linear_value_head_dim": keys.integer("linear_value_head_dim"),
        "linear_conv_kernel": keys.integer("linear_conv_kernel_dim"),
        "num_experts": keys.integer("num_experts"),
        "num_experts_per_token": keys.integer("num_experts_per_tok"),
        "moe_intermediate_size": keys.integer("moe_intermediate_size"),
        "shared_expert_intermediate_size": keys.integer("shared_expert_intermediate_size"),
        "norm_topk_prob": keys.flag("norm_topk_prob", True),
    }


def _decoder_from_gguf(keys: _Keys) -> dict[str, Any]:
    scaling = keys.get("rope.scaling.type")
    if scaling not in (None, "none"):
        raise keys.error("rope.scaling.type", f"is {scaling!r}; only 'none' is supported")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    return {
        "vocab_size": keys.integer("vocab_size", len(keys.values.get("tokenizer.ggml.tokens", ()))),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_kv_heads": keys.integer("attention.head_count_kv"),
        "head_dim": head_dim,
        "rotary_dim": keys.integer("rope.dimension_count", head_dim),
        "rope_theta": keys.number("rope.freq_base"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position": keys.integer("context_length"),
        "tie_word_embeddings": False,
    }


def _llama_from_gguf(keys: _Keys) -> dict[str, Any]:
    if keys.get("expert_count"):
        raise keys.error("expert_count", f"is {keys.get('expert_count')}; llama with experts is not supported")
    fields = _decoder_from_gguf(keys)
    return fields | {"architecture": "llama", "layer_types": ("full_attention",) * fields["num_layers"]}


def _qwen3_next_from_gguf(keys: _Keys) -> dict[str, Any]:
    fields = _decoder_from_gguf(keys)
    value_heads = keys.integer("ssm.time_step_rank")
    return fields | {
        "architecture": "qwen3_next",
        "layer_types": _every_nth_full(fields["num_layers"], keys.integer("full_attention_interval", 4)),
        "attention_output_gate": True,
        "qk_norm": True,
        "linear_num_key_heads": keys.integer("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": keys.integer("ssm.state_size"),
        "linear_value_head_dim": keys.integer("ssm.inner_size") // value_heads,
        "linear_conv_kernel": keys.integer("ssm.conv_kernel"),
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_token": keys.integer("expert_used_count"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length"),
    }
