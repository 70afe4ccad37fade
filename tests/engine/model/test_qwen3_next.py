"""The decoder against transformers' float32 Qwen3NextForCausalLM: every way of cutting texts into steps."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from engine.cache.delta_state import DeltaState
from engine.cache.paged_kv import allocate_cache
from engine.cache.tensors import CacheTensors
from engine.errors import CheckpointError
from engine.model.batch import Batch
from engine.model.decoder import Decoder
from engine.quant.formats import Packed, repack
from engine.quant.linear import PackedExperts, repack_experts
from engine.weights.layout import tensor_specs
from engine.weights.safetensors import SafetensorsSource

BLOCK = 16
BLOCKS_EACH = 14
SLOTS = 5
LIMIT = 1e-4
CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "partial_rotary_factor": 0.25,
    "max_position_embeddings": 1024, "rope_theta": 5e6, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 8, "num_experts": 16, "num_experts_per_tok": 4,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "norm_topk_prob": True,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-3,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "8 layers": {},
    "3 value heads a key head, half the head rotated, tied": {
        "num_hidden_layers": 4, "linear_num_value_heads": 6, "partial_rotary_factor": 0.5, "tie_word_embeddings": True,
    },
    "equal heads, conv of 3, raw top-k weights": {
        "num_hidden_layers": 4, "linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_conv_kernel_dim": 3,
        "partial_rotary_factor": 1.0, "norm_topk_prob": False,
    },
}  # fmt: skip


@dataclass
class Pair:
    """The oracle and ours with the same weights."""

    oracle: Qwen3NextForCausalLM
    decoder: Decoder

    def cache(self) -> CacheTensors:
        """Zeroed memory for SLOTS sequences."""
        config = self.decoder.config
        kv = allocate_cache(config, SLOTS * BLOCKS_EACH, BLOCK, torch.float32, CPU)
        return replace(kv, delta=DeltaState(config, SLOTS, torch.float32, torch.float32, CPU).layers)

    @torch.inference_mode()
    def expected(self, ids: list[int]) -> Tensor:
        logits: Tensor = self.oracle(torch.tensor([ids]), use_cache=False).logits[0]
        return logits


def scramble(model: Qwen3NextForCausalLM) -> None:
    """Norms far enough from neutral, and weights large enough, that a wrong term shows in the logits.

    Yet small enough, with an eps of 1e-3, that the oracle's own rounding does not: its logits in float32 differ from
    those in float64 by less than 1e-5 here, but by up to 2e-2 when weights are doubled and eps is 1e-6.
    """
    with torch.no_grad():
        for name, values in model.named_parameters():
            if not name.endswith("A_log"):
                values.copy_(torch.randn_like(values) * (0.1 if values.ndim > 1 else 0.2))
            if name.endswith("linear_attn.norm.weight"):
                values.add_(1)


def load_weights(directory: Path) -> Decoder:
    source = SafetensorsSource(directory)
    weights = {}
    for spec in tensor_specs(source.config):
        stored = source.read(spec)
        if isinstance(stored, Packed):
            stored = repack(stored, "f32")
        elif isinstance(stored, PackedExperts):
            stored = repack_experts(stored, "f32")
        weights[spec.name] = stored
    return Decoder(source.config, weights, CPU, torch.float32)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    torch.manual_seed(11)
    oracle = Qwen3NextForCausalLM(Qwen3NextConfig(**SHAPE | VARIANTS[request.param])).float().eval()
    scramble(oracle)
    directory = tmp_path_factory.mktemp("qwen3_next")
    oracle.save_pretrained(directory)
    return Pair(oracle, load_weights(directory))


def step_of(parts: list[tuple[list[int], int, int]]) -> Batch:
    """A step of (new token ids, tokens before them, slot) for each sequence, all rows wanted.

    The slot also says which blocks are the sequence's: they lie scattered over the pool.
    """
    tokens = [token for ids, _, _ in parts for token in ids]
    places = [(slot, at) for ids, start, slot in parts for at in range(start, start + len(ids))]
    lens = [len(ids) for ids, _, _ in parts]
    return Batch(
        token_ids=torch.tensor(tokens),
        positions=torch.tensor([at for _, at in places]),
        slot_mapping=torch.tensor([(at // BLOCK * SLOTS + slot) * BLOCK + at % BLOCK for slot, at in places]),
        block_tables=torch.tensor([[i * SLOTS + slot for i in range(BLOCKS_EACH)] for _, _, slot in parts]),
        query_starts=torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32),
        state_slots=torch.tensor([slot for _, _, slot in parts]),
        logit_rows=torch.arange(len(tokens)),
        query_lens=tuple(lens),
        context_lens=tuple(start + len(ids) for ids, start, _ in parts),
    )


def text(length: int, seed: int) -> list[int]:
    return torch.randint(0, 211, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_near(got: Tensor, want: Tensor) -> None:
    assert want.abs().max() > 1
    assert (got - want).abs().max().item() < LIMIT


def in_pieces(pair: Pair, ids: list[int], sizes: list[int]) -> Tensor:
    """Logits of all tokens when a lone sequence in slot 3 is computed in pieces of these sizes."""
    cache, rows, at = pair.cache(), [], 0
    for size in sizes:
        rows.append(pair.decoder.forward(step_of([(ids[at : at + size], at, 3)]), cache))
        at += size
    return torch.cat(rows)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_prefill_equals_transformers(pair: Pair, length: int) -> None:
    ids = text(length, seed=length)
    assert_near(in_pieces(pair, ids, [length]), pair.expected(ids))


def test_decode_after_prefill_equals_transformers(pair: Pair) -> None:
    ids = text(110, seed=5)
    assert_near(in_pieces(pair, ids, [70] + [1] * 40), pair.expected(ids))


@pytest.mark.parametrize("first", [1, 2, 3, 63, 64, 65, 127, 128])
def test_chunked_prefill_at_any_split_equals_transformers(pair: Pair, first: int) -> None:
    ids = text(140, seed=9)
    assert_near(in_pieces(pair, ids, [first, 140 - first]), pair.expected(ids))


@pytest.mark.parametrize("seed", range(3))
def test_mixed_batches_equal_transformers(pair: Pair, seed: int) -> None:
    """Four sequences of unlike lengths advance by random pieces in a random order within each step."""
    rng = random.Random(seed)
    slots = rng.sample(range(SLOTS), 4)
    texts = {slot: text(rng.randint(20, 220), seed * 10 + slot) for slot in slots}
    done, rows, cache = dict.fromkeys(slots, 0), {slot: [] for slot in slots}, pair.cache()
    while live := [slot for slot in slots if done[slot] < len(texts[slot])]:
        rng.shuffle(live)
        sizes = {slot: min(rng.choice([1, 1, 7, 64, 100]), len(texts[slot]) - done[slot]) for slot in live}
        parts = [(texts[slot][done[slot] : done[slot] + sizes[slot]], done[slot], slot) for slot in live]
        logits = torch.split(pair.decoder.forward(step_of(parts), cache), list(sizes.values()))
        for slot, part in zip(live, logits, strict=True):
            rows[slot].append(part)
            done[slot] += sizes[slot]
    for slot, ids in texts.items():
        assert_near(torch.cat(rows[slot]), pair.expected(ids))


@pytest.mark.parametrize("name", ["linear_attn.in_proj_ba.weight", "linear_attn.A_log", "mlp.experts.down_proj"])
def test_a_missing_tensor_is_named(name: str) -> None:
    """The first layer is linear and sparse: any of its tensors is missed as soon as the decoder is built."""
    from engine.weights.synthetic import SHAPES, SyntheticSource

    config = replace(SHAPES["tiny"], num_layers=1, layer_types=("linear_attention",))
    source = SyntheticSource(config)
    weights = {spec.name: source.read(spec) for spec in tensor_specs(config) if not spec.name.endswith(name)}
    with pytest.raises(CheckpointError, match=f"model.layers.0.{name}"):
        Decoder(config, weights, CPU, torch.float32)
