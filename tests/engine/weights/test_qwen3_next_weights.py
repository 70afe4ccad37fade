"""qwen3_next checkpoints: per-expert safetensors, the FP8 layout, and GGUF with the converter's changes undone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize
from safetensors.torch import load_file, save_file

from engine.quant.formats import Packed, dequantize
from engine.quant.linear import PackedExperts
from engine.weights.loader import Checkpoint, load

FULL_NORMS = ("layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight")
METADATA = {
    "block_count": 4, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
    "attention.head_count_kv": 2, "attention.key_length": 32, "attention.value_length": 32,
    "rope.dimension_count": 8, "expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 64, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2,
    "ssm.time_step_rank": 4, "ssm.inner_size": 32,
}  # fmt: skip


def values(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    weight = checkpoint.weights[name]
    if isinstance(weight, torch.Tensor):
        return weight
    if isinstance(weight, PackedExperts):
        return torch.stack([dequantize(weight.expert_packed(e)) for e in range(weight.shape[0])])
    return dequantize(weight)


def effective(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What multiplies: the zero-centred norms as 1 + w."""
    return {name: tensor + 1 if name.endswith(FULL_NORMS) else tensor for name, tensor in state.items()}


def as_converter(state: dict[str, torch.Tensor], legacy: bool) -> dict[str, torch.Tensor]:
    """What llama.cpp's converter makes of a state, by the table of its published source."""
    renames = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "post_attention_norm", "input_layernorm": "attn_norm",
        "linear_attn.in_proj_qkvz": "ssm_in", "linear_attn.in_proj_ba": "ssm_ba", "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.norm": "ssm_norm",
        "linear_attn.out_proj": "ssm_out", "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.gate": "ffn_gate_inp",
        "mlp.experts.down_proj": "ffn_down_exps.weight", "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp", "model.embed_tokens": "token_embd",
        "model.norm": "output_norm", "lm_head": "output", "model.layers.": "blk.",
    }  # fmt: skip
    made: dict[str, torch.Tensor] = {}
    for name, tensor in effective(state).items():
        native = name
        for old, new in renames.items():
            native = native.replace(old, new)
        if name.endswith("A_log"):
            tensor = -tensor.exp()
        made[native] = tensor.squeeze()
    return made if legacy else split(made)


def split(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Newer converters: q | k | v and z apart, gate and up experts apart. 2 key heads of 16, 4 value heads of 8."""
    parts: dict[str, torch.Tensor] = {}
    for name, tensor in made.items():
        block = name.rpartition("ssm_in")[0] or name.rpartition("ffn_gate_up_exps")[0]
        if "ssm_in" in name:
            query, key, value, gate = tensor.reshape(2, 64, 64).split([16, 16, 16, 16], dim=1)
            parts[f"{block}attn_qkv.weight"] = torch.cat([p.reshape(-1, 64) for p in (query, key, value)])
            parts[f"{block}attn_gate.weight"] = gate.reshape(-1, 64)
        elif "gate_up_exps" in name:
            parts[f"{block}ffn_gate_exps.weight"], parts[f"{block}ffn_up_exps.weight"] = tensor.chunk(2, dim=1)
        else:
            parts[name] = tensor
    return parts


def test_safetensors_stack_experts_and_skip_draft_layers(save_qwen3_next: Any) -> None:
    directory, state = save_qwen3_next()
    extra = {"mtp.fc.weight": torch.zeros(4, 4), "mtp.layers.0.mlp.gate.weight": torch.zeros(2, 4)}
    save_file(extra, directory / "draft.safetensors")
    checkpoint = load(str(directory), "f32")
    expected = effective(state)
    assert set(checkpoint.weights) == set(expected)
    assert all(torch.equal(values(checkpoint, name), tensor) for name, tensor in expected.items())
    assert checkpoint.config.layer_types == ("linear_attention",) * 3 + ("full_attention",)
    assert (checkpoint.config.rotary_dim, checkpoint.config.num_experts_per_token) == (8, 2)


@pytest.mark.parametrize("legacy", [True, False])
def test_gguf_equals_safetensors(save_qwen3_next: Any, write_gguf: Any, tmp_path: Path, legacy: bool) -> None:
    directory, state = save_qwen3_next()
    path = write_gguf(tmp_path / "q.gguf", "qwen3next", METADATA, as_converter(state, legacy))
    checkpoint = load(str(path), "as-stored")
    expected = load(str(directory), "f32")
    assert {**vars(checkpoint.config), "rms_norm_eps": 0} == {**vars(expected.config), "rms_norm_eps": 0}
    for name in expected.weights:
        torch.testing.assert_close(values(checkpoint, name), values(expected, name), rtol=1e-6, atol=1e-6, msg=name)


def test_gguf_parts_of_unlike_types_stay_packed(save_qwen3_next: Any, write_gguf: Any, tmp_path: Path) -> None:
    _, state = save_qwen3_next()
    q8, q4 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
    kinds = {"attn_qkv": q8, "attn_gate": q4, "ffn_gate_exps": q8, "ffn_up_exps": q4, "ffn_down_exps": q4}
    packed: dict[str, Any] = {}
    rounded: dict[str, torch.Tensor] = {}
    for name, tensor in as_converter(state, legacy=False).items():
        kind = kinds.get(name.split(".")[-2])
        data = tensor.contiguous().numpy()
        packed[name] = tensor if kind is None else (quantize(data, kind), kind)
        rounded[name] = tensor if kind is None else torch.from_numpy(gguf_dequantize(quantize(data, kind), kind))
    stored = load(str(write_gguf(tmp_path / "packed.gguf", "qwen3next", METADATA, packed)), "as-stored")
    expected = load(str(write_gguf(tmp_path / "rounded.gguf", "qwen3next", METADATA, rounded)), "f32")
    assert stored.identity["recipe"]["expert"] == "Q4_0,Q8_0+Q4_0"
    for name in expected.weights:
        torch.testing.assert_close(values(stored, name), values(expected, name), rtol=0, atol=0, msg=name)
    int4 = load(str(tmp_path / "packed.gguf"), "int4")
    assert int4.identity["recipe"]["expert"] == "int4"


def fp8_directory(directory: Path) -> dict[str, torch.Tensor]:
    """Rewrite a directory in the official FP8 layout; returns what the weights now mean."""
    state = load_file(directory / "model.safetensors")
    stored, meaning = {}, {}
    for name, tensor in state.items():
        kept = tensor.ndim != 2 or any(
            p in name for p in ("embed", "lm_head", "in_proj_ba", "mlp.gate.", "expert_gate")
        )
        if kept:
            stored[name], meaning[name] = tensor.bfloat16(), tensor.bfloat16().float()
            continue
        rows, columns = (-(-size // 128) for size in tensor.shape)
        scale = torch.rand(rows, columns) * 0.01 + 0.001
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: tensor.shape[0], : tensor.shape[1]]
        stored[name], stored[f"{name}_scale_inv"] = (tensor / spread).to(torch.float8_e4m3fn), scale
        meaning[name] = stored[name].float() * spread
    save_file(stored, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (directory / "config.json").write_text(json.dumps(config))
    return meaning


def test_fp8_checkpoint_stays_packed(save_qwen3_next: Any) -> None:
    directory, _ = save_qwen3_next(hidden_size=160, moe_intermediate_size=128)
    meaning = fp8_directory(directory)
    checkpoint = load(str(directory), "as-stored")
    recipe = checkpoint.identity["recipe"]
    assert {kind: recipe[kind] for kind in ("linear", "expert", "delta_ba", "router", "lm_head")} == {
        "linear": "fp8", "expert": "fp8", "delta_ba": "bf16", "router": "bf16", "lm_head": "bf16",
    }  # fmt: skip
    for name, tensor in effective(meaning).items():
        if ".experts." not in name:
            assert torch.equal(values(checkpoint, name), tensor), name
    gate_up = values(checkpoint, "model.layers.1.mlp.experts.gate_up_proj")
    prefix = "model.layers.1.mlp.experts.5"
    assert torch.equal(gate_up[5], torch.cat([meaning[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up")]))
    weight = load(str(directory), "fp8").weights["model.layers.0.linear_attn.out_proj.weight"]
    assert isinstance(weight, Packed)
    assert weight.format == "fp8"
