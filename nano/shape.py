"""The shape of sweq-nano, in the words of a Hugging Face `config.json`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from engine.config import ModelConfig

CHUNK = 64
"""Tokens that the delta rule solves at once in training; rows of a batch are whole chunks."""

NANO: Mapping[str, Any] = MappingProxyType(
    {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "full_attention_interval": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "partial_rotary_factor": 0.25,
        "rope_theta": 1e5,
        "rope_scaling": None,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "hidden_act": "silu",
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "bfloat16",
    }
)
"""About 11 million parameters; matrix sides are multiples of 128, the block of FP8 checkpoints."""


def model_config(values: Mapping[str, Any] = NANO) -> ModelConfig:
    """The same shape as the engine reads it; CheckpointError for a shape that it cannot serve."""
    return ModelConfig.from_hf(values, "nano/shape.py")
