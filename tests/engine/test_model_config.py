"""ModelConfig from config.json in its older and newer forms."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.config import ModelConfig
from engine.errors import CheckpointError

QWEN3_NEXT = {
    "model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5120,
    "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "partial_rotary_factor": 0.25, "rope_theta": 5000000,
    "rope_scaling": None, "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 512,
    "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip


def test_qwen3_next_in_both_forms() -> None:
    older = ModelConfig.from_hf(QWEN3_NEXT, "config.json")
    kinds = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(48)]
    newer = {k: v for k, v in QWEN3_NEXT.items() if k not in ("rope_theta", "rope_scaling", "partial_rotary_factor")}
    del newer["full_attention_interval"]
    newer |= {
        "layer_types": kinds,
        "rope_parameters": {"rope_theta": 5e6, "rope_type": "default", "partial_rotary_factor": 0.25},
    }
    assert ModelConfig.from_hf(newer, "config.json") == older
    assert (older.rotary_dim, older.rope_theta, older.layer_types) == (64, 5e6, tuple(kinds))
    with pytest.raises(
        CheckpointError, match="layer_types' must name full_attention or linear_attention for each of 48"
    ):
        ModelConfig.from_hf(newer | {"layer_types": kinds[:-1]}, "config.json")
    with pytest.raises(CheckpointError, match="decoder_sparse_step' is 2; only 1 is supported"):
        ModelConfig.from_hf(QWEN3_NEXT | {"decoder_sparse_step": 2}, "config.json")


def test_llama3_factors_equal_transformers() -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = {
        "model_type": "llama", "vocab_size": 256, "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        "rope_theta": 500000.0, "rope_scaling": scaling,
    }  # fmt: skip
    ours = ModelConfig.from_hf(config, "config.json")
    theirs = LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters=scaling | {"rope_theta": 500000.0},
        max_position_embeddings=131072,
    )  # fmt: skip
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    assert ours.rope_factors is not None
    inverse = 1.0 / (5e5 ** (torch.arange(0, 128, 2) / 128)) / torch.tensor(ours.rope_factors)
    torch.testing.assert_close(inverse, expected, rtol=1e-5, atol=0)
    with pytest.raises(CheckpointError, match="rope_scaling: key 'factor' is missing"):
        ModelConfig.from_hf(config | {"rope_scaling": {"type": "llama3"}}, "config.json")
