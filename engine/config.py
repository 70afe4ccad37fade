"""What a model is (`ModelConfig`) and how it is served (`EngineConfig`)."""

from dataclasses import dataclass
from typing import Literal

LayerType = Literal["full_attention", "linear_attention"]
Architecture = Literal["llama", "qwen3_next"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder, always read from the checkpoint (`config.json` or GGUF metadata), never from defaults.

    Fields from `linear_num_key_heads` on are 0 for architectures without DeltaNet layers or experts.
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


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine may hold and do at once.

    `num_blocks` None sizes the KV pool from free memory; `max_step_tokens` is the token budget of one step, shared by
    running decodes (one each) and chunked prefill; `max_context` None takes the model's own.
    """

    block_size: int = 16
    num_blocks: int | None = None
    max_running: int = 32
    max_step_tokens: int = 1024
    max_context: int | None = None
    prefix_cache: bool = True
    device: str = "cpu"
