"""Small checkpoints on disk: made with transformers, and written as GGUF by the `gguf` package."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

GGUF_PREFIX_KEYS = {
    "rope.freq_base": 10000.0,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "context_length": 64,
}


def save_tokenizer(directory: Path) -> None:
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))


def perturbed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random values in every tensor, so that no error hides behind zeros or ones; returns the state."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in model.parameters():
            values.copy_(torch.rand(values.shape, generator=generator) - 0.4)
    return model.state_dict()


SaveHF = Callable[..., tuple[Path, dict[str, torch.Tensor]]]
WriteGGUF = Callable[..., Path]


@pytest.fixture(scope="session")
def save_llama(tmp_path_factory: pytest.TempPathFactory) -> SaveHF:
    """Save a random two-layer llama; keywords change its configuration. Returns the directory and the state."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def save(dtype: torch.dtype = torch.float32, shard: str = "1GB", **changes: Any) -> Any:
        shape = {
            "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        }  # fmt: skip
        model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
        state = perturbed(model)
        directory = tmp_path_factory.mktemp("llama")
        model.to(dtype).save_pretrained(directory, max_shard_size=shard)
        save_tokenizer(directory)
        return directory, state

    return save


@pytest.fixture(scope="session")
def save_qwen3_next(tmp_path_factory: pytest.TempPathFactory) -> SaveHF:
    """Save a random qwen3_next of four layers; keywords change its configuration."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    def save(**changes: Any) -> Any:
        shape = {
            "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        }  # fmt: skip
        model = Qwen3NextForCausalLM(Qwen3NextConfig(**(shape | changes)))
        state = perturbed(model)
        directory = tmp_path_factory.mktemp("qwen3_next")
        model.save_pretrained(directory)
        save_tokenizer(directory)
        return directory, state

    return save


@pytest.fixture(scope="session")
def write_gguf() -> WriteGGUF:
    """Write tensors and metadata (keys without their architecture prefix) as a GGUF file.

    A tensor may come as `(bytes, type)`; plain ones are written as float32.
    """

    def write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Path:
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in (GGUF_PREFIX_KEYS | dict(metadata)).items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{architecture}.{key}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet())[:255], "he"])
        writer.add_token_merges(["h e"])
        for name, value in tensors.items():
            if isinstance(value, tuple):
                writer.add_tensor(name, value[0], raw_dtype=value[1])
            else:
                writer.add_tensor(name, value.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Change keys of a directory's config.json; None removes a key."""

    def edit(directory: Path, **changes: Any) -> None:
        file = directory / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return edit
