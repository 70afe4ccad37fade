from collections.abc import Callable

import pytest
import torch

from engine.config import EngineConfig, ModelConfig
from engine.core.engine import Engine
from engine.core.request import Completion, Request, SamplingParams
from engine.quant.formats import pack
from engine.text.tokenizer import Tokenizer
from engine.weights.layout import tensor_specs
from engine.weights.loader import Checkpoint

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


@pytest.fixture
def make_engine(checkpoint: Checkpoint) -> Callable[..., Engine]:
    def make(**limits: int | bool) -> Engine:
        return Engine(checkpoint, EngineConfig(**{"num_blocks": 64, "max_step_tokens": 48, **limits}))  # type: ignore[arg-type]

    return make


def run(engine: Engine, wishes: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, Completion]:
    """Drive the engine until every wish is answered."""
    for name, (ids, params) in wishes.items():
        engine.add(Request(name, tuple(ids), params))
    done = {name: Completion([], "", "error", len(ids), logprobs=[]) for name, (ids, _) in wishes.items()}
    while engine.has_work:
        for output in engine.step():
            completion = done[output.request_id]
            completion.token_ids += output.token_ids
            completion.text += output.text
            completion.cached_tokens, completion.error = output.cached_tokens, output.error
            completion.logprobs = [*(completion.logprobs or []), *output.logprobs]
            completion.finish_reason = output.finish_reason or completion.finish_reason
    return done
