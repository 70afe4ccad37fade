"""The decoder against transformers' float32 Llama on a tiny random model: every way of cutting a text into steps."""

import random

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from engine.cache.paged_kv import allocate_cache
from engine.cache.tensors import CacheTensors
from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.model.batch import Batch
from engine.model.decoder import Decoder, Weights
from engine.quant.formats import pack

BLOCK = 16
LIMIT = 1e-4
CPU = torch.device("cpu")
CONFIG = LlamaConfig(
    vocab_size=199,
    hidden_size=72,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=24,
    max_position_embeddings=1024,
    rope_theta=50_000.0,
    attention_bias=True,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def oracle() -> LlamaForCausalLM:
    """Random weights large enough, and norms far enough from 1, that a wrong term shows in the logits."""
    torch.manual_seed(7)
    model = LlamaForCausalLM(CONFIG).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                1 + 0.3 * torch.randn_like(parameter) if "norm" in name else 0.2 * torch.randn_like(parameter)
            )
    return model


def weights_of(model: LlamaForCausalLM) -> Weights:
    return {
        name: pack(tensor, "f32") if tensor.ndim == 2 else tensor.float() for name, tensor in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def decoder(oracle: LlamaForCausalLM) -> Decoder:
    config = ModelConfig.from_hf(oracle.config.to_dict() | {"model_type": "llama"}, "config.json")
    return Decoder(config, weights_of(oracle), CPU, torch.float32)


@pytest.fixture
def cache(decoder: Decoder) -> CacheTensors:
    return allocate_cache(decoder.config, 64, BLOCK, torch.float32, CPU)


def batch_of(parts: list[tuple[list[int], int, list[int]]]) -> Batch:
    """A step of (new token ids, tokens cached before, block table) for each sequence, all rows wanted."""
    tokens = [token for ids, _, _ in parts for token in ids]
    places = [(blocks, at) for ids, start, blocks in parts for at in range(start, start + len(ids))]
    longest = max(len(blocks) for _, _, blocks in parts)
    lens = [len(ids) for ids, _, _ in parts]
    return Batch(
        token_ids=torch.tensor(tokens),
        positions=torch.tensor([at for _, at in places]),
        slot_mapping=torch.tensor([blocks[at // BLOCK] * BLOCK + at % BLOCK for blocks, at in places]),
        block_tables=torch.tensor([b + [0] * (longest - len(b)) for _, _, b in parts], dtype=torch.int32),
        query_starts=torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32),
        state_slots=torch.zeros(len(parts), dtype=torch.int64),
        logit_rows=torch.arange(len(tokens)),
        query_lens=tuple(lens),
        context_lens=tuple(start + len(ids) for ids, start, _ in parts),
    )


def text(length: int, seed: int) -> list[int]:
    return torch.randint(0, 199, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def expected(oracle: LlamaForCausalLM, ids: list[int]) -> Tensor:
    logits: Tensor = oracle(torch.tensor([ids])).logits[0]
    return logits


def difference(got: Tensor, want: Tensor) -> float:
    return (got - want).abs().max().item()


@pytest.mark.parametrize("length", [1, 16, 300])
def test_prefill_equals_transformers(decoder, cache, oracle, length: int) -> None:
    ids = text(length, seed=length)
    logits = decoder.forward(batch_of([(ids, 0, list(range(5, 5 + 20)))]), cache)
    assert logits.dtype == torch.float32
    assert difference(logits, expected(oracle, ids)) < LIMIT


@pytest.mark.parametrize("seed", range(4))
def test_mixed_batches_of_random_chunks_equal_transformers(decoder, cache, oracle, seed: int) -> None:
    """Three sequences advance by random chunks, single tokens among them, over scattered blocks."""
    rng = random.Random(seed)
    texts = [text(rng.randint(20, 150), seed * 10 + i) for i in range(3)]
    blocks = rng.sample(range(64), 30)
    tables = [blocks[i * 10 : i * 10 + 10] for i in range(3)]
    done, rows = [0, 0, 0], [[], [], []]
    while any(at < len(ids) for at, ids in zip(done, texts, strict=True)):
        live = [i for i in range(3) if done[i] < len(texts[i])]
        sizes = {i: min(rng.choice([1, 1, 7, 40]), len(texts[i]) - done[i]) for i in live}
        parts = [(texts[i][done[i] : done[i] + sizes[i]], done[i], tables[i]) for i in live]
        logits = decoder.forward(batch_of(parts), cache).split(list(sizes.values()))
        for i, part in zip(live, logits, strict=True):
            rows[i].append(part)
            done[i] += sizes[i]
    for ids, parts in zip(texts, rows, strict=True):
        assert difference(torch.cat(parts), expected(oracle, ids)) < LIMIT


def test_scaled_rotary_frequencies_equal_transformers() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10_000.0,
    }
    config = LlamaConfig(**CONFIG.to_dict() | {"rope_parameters": scaling, "num_hidden_layers": 1})
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).float().eval()
    ours = Decoder(ModelConfig.from_hf(config.to_dict(), "config.json"), weights_of(model), CPU, torch.float32)
    ids = text(200, seed=3)
    cache = allocate_cache(ours.config, 16, BLOCK, torch.float32, CPU)
    logits = ours.forward(batch_of([(ids, 0, list(range(13)))]), cache)
    assert difference(logits, expected(model, ids)) < LIMIT


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_missing_tensor_is_named(oracle, decoder, name: str) -> None:
    weights = {key: value for key, value in weights_of(oracle).items() if key != name}
    with pytest.raises(CheckpointError, match=name):
        Decoder(decoder.config, weights, CPU, torch.float32)
