"""Two layers of Qwen3-Coder-Next's own shape in bfloat16 on a GPU: as near to float32 as transformers gets in bfloat16.

On random weights a rounded router logit can choose another expert, so that no two bfloat16 implementations agree to a
fixed bound; what can be asked is that ours is not farther from the float32 truth than the oracle's own bfloat16.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from engine.cache.delta_state import DeltaState
from engine.cache.paged_kv import allocate_cache
from engine.cache.tensors import CacheTensors
from engine.config import ModelConfig
from engine.model.batch import Batch
from engine.model.decoder import Decoder, Weights
from engine.quant.formats import Packed
from engine.quant.linear import PackedExperts
from engine.weights.layout import tensor_specs

BLOCK = 16
SLACK = 1.25  # ours may be this much farther from the truth than the oracle's bfloat16
WORST = 0.1  # and the oracle itself must be this near for the test to mean anything
LAYERS = ["linear_attention", "full_attention"]
REAL: dict[str, Any] = {
    "vocab_size": 8192, "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 2, "layer_types": LAYERS,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "partial_rotary_factor": 0.25,
    "max_position_embeddings": 262144, "rope_theta": 5e6, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_experts": 512, "num_experts_per_tok": 10,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "norm_topk_prob": True,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
}  # fmt: skip
SMALL = REAL | {
    "vocab_size": 512, "hidden_size": 128, "num_experts": 32, "num_attention_heads": 4, "head_dim": 64,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip


def make_oracle(shape: dict[str, Any], device: torch.device) -> Qwen3NextForCausalLM:
    """Random weights that bfloat16 holds exactly, norms perturbed, projections that keep the scale of their input."""
    torch.manual_seed(3)
    with torch.device(device):
        model = Qwen3NextForCausalLM(Qwen3NextConfig(**shape)).bfloat16().eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim > 1:
                values.normal_(std=values.shape[-1] ** -0.5 if "conv1d" not in name else 0.5)
            elif not name.endswith("A_log"):
                values.normal_(std=0.2).add_(1.0 if name.endswith("linear_attn.norm.weight") else 0.0)
    return model


def our_weights(model: Qwen3NextForCausalLM, config: ModelConfig) -> Weights:
    """The oracle's tensors in our form: norms as factors in float32, matrices as they are."""
    stored, weights = model.state_dict(), {}
    for spec in tensor_specs(config):
        value = stored[spec.name].detach()
        if spec.tensor_class == "norm":
            weights[spec.name] = value.float() + (0 if spec.name.endswith("linear_attn.norm.weight") else 1)
        elif spec.tensor_class in ("vector", "conv"):
            weights[spec.name] = value.float()
        elif spec.tensor_class == "expert":
            weights[spec.name] = PackedExperts("bf16", spec.shape, {"weight": value})
        else:
            weights[spec.name] = Packed("bf16", spec.shape, {"weight": value})
    return weights


def make_cache(config: ModelConfig, blocks: int, device: torch.device) -> CacheTensors:
    kv = allocate_cache(config, blocks, BLOCK, torch.bfloat16, device)
    return replace(kv, delta=DeltaState(config, 1, torch.bfloat16, torch.float32, device).layers)


def step_of(ids: Tensor, start: int, blocks: int) -> Batch:
    """`ids` [T] as the tokens from `start` on of one sequence in slot 0 and the blocks in order."""
    device, at = ids.device, torch.arange(start, start + len(ids), device=ids.device)
    return Batch(
        token_ids=ids,
        positions=at,
        slot_mapping=at,
        block_tables=torch.arange(blocks, device=device, dtype=torch.int32)[None],
        query_starts=torch.tensor([0, len(ids)], dtype=torch.int32, device=device),
        state_slots=torch.zeros(1, dtype=torch.int64, device=device),
        logit_rows=torch.arange(len(ids), device=device),
        query_lens=(len(ids),),
        context_lens=(start + len(ids),),
    )


def error(got: Tensor, truth: Tensor) -> float:
    return ((got.float() - truth).norm() / truth.norm()).item()


def compare(shape: dict[str, Any], device: torch.device, length: int, pieces: list[int]) -> tuple[float, float]:
    """Relative errors of our logits and of the oracle's in bfloat16, against the oracle in float32."""
    oracle = make_oracle(shape, device)
    config = ModelConfig.from_hf(oracle.config.to_dict(), "oracle")
    ids = torch.randint(0, shape["vocab_size"], (length,), device=device)
    blocks = -(-length // BLOCK)
    decoder, cache = (
        Decoder(config, our_weights(oracle, config), device, torch.bfloat16),
        make_cache(config, blocks, device),
    )
    starts = [sum(pieces[:i]) for i in range(len(pieces))]
    ours = torch.cat(
        [
            decoder.forward(step_of(ids[at : at + size], at, blocks), cache)
            for at, size in zip(starts, pieces, strict=True)
        ]
    )
    with torch.inference_mode():
        rounded = oracle(ids[None], use_cache=False).logits[0]
        truth = oracle.float()(ids[None], use_cache=False).logits[0]
    return error(ours, truth), error(rounded, truth)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pieces", [[300], [192, 64, 44], [270] + [1] * 30])
def test_real_layers_are_as_near_to_float32_as_the_oracle(pieces: list[int]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    ours, oracle = compare(REAL, torch.device("cuda"), 300, pieces)
    print(f"relative error to float32 over {pieces[:3]}: ours {ours:.2e}, transformers in bfloat16 {oracle:.2e}")
    assert oracle < WORST
    assert ours < SLACK * oracle


def test_small_layers_are_as_near_to_float32_as_the_oracle() -> None:
    ours, oracle = compare(SMALL, torch.device("cpu"), 150, [100, 49, 1])
    assert oracle < WORST
    assert ours < SLACK * oracle
