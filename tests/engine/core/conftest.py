from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from engine.config import EngineConfig, ModelConfig
from engine.core.engine import Engine
from engine.quant.formats import Packed, pack, repack
from engine.quant.linear import PackedExperts, repack_experts
from engine.text.tokenizer import Tokenizer
from engine.weights.layout import tensor_specs
from engine.weights.loader import Checkpoint
from engine.weights.synthetic import SHAPES, SyntheticSource

PADDING = 16
"""Rows of the vocabulary that stand for no token."""

_PRINTABLE = [chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models here are tiny; waiting for a second thread takes longer than the work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """A tiny random llama over bytes, whose padding rows would win every argmax if they were let in."""
    config = ModelConfig(
        architecture="llama",
        vocab_size=256 + PADDING,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        layer_types=("full_attention",) * 2,
        num_attention_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rotary_dim=16,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        max_position=256,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    weights = {}
    for spec in tensor_specs(config):
        value = torch.randn(spec.shape) * 0.3
        if spec.name == "lm_head.weight":
            value[256:] *= 100
        weights[spec.name] = pack(value, "f32") if value.ndim == 2 else 1 + value
    tokenizer = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*_PRINTABLE, *[chr(256 + n) for n in range(256 - len(_PRINTABLE))]],
            "tokenizer.ggml.merges": [],
        }
    )
    return Checkpoint(config, weights, tokenizer, None, {"quant": "f32"})


@pytest.fixture(scope="session")
def hybrid() -> Checkpoint:
    """A tiny random qwen3_next over bytes: three linear layers and one of attention."""
    config = replace(
        SHAPES["tiny"], vocab_size=300, hidden_size=64, num_layers=4, layer_types=SHAPES["tiny"].layer_types[:4]
    )
    source, weights = SyntheticSource(config, seed=5), {}
    for spec in tensor_specs(config):
        stored = source.read(spec)
        if isinstance(stored, Packed):
            stored = repack(stored, "f32")
        elif isinstance(stored, PackedExperts):
            stored = repack_experts(stored, "f32")
        weights[spec.name] = stored
    return Checkpoint(config, weights, source.tokenizer(), None, {"quant": "f32"})


@pytest.fixture
def make_engine(checkpoint: Checkpoint) -> Callable[..., Engine]:
    def make(**limits: int | bool) -> Engine:
        return Engine(checkpoint, EngineConfig(**{"num_blocks": 64, "max_step_tokens": 48, **limits}))  # type: ignore[arg-type]

    return make
