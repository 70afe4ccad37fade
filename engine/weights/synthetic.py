"""Random weights at a known shape, made on the device: for speed measurements and tests that no checkpoint serves."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import UserError
from engine.quant.formats import Packed
from engine.quant.linear import PackedExperts
from engine.text.tokenizer import CONTROL, USER_DEFINED, Tokenizer
from engine.weights.layout import TensorSpec
from engine.weights.packed import save_gguf_tokenizer
from engine.weights.source import Weight

PREFIX = "synthetic:"
_NORMAL = 1
_CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEXT_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen3_next(**shape: Any) -> ModelConfig:
    """A shape of the family: every fourth layer full attention, a quarter of each head rotated."""
    layers, head_dim = shape["num_layers"], shape["head_dim"]
    kinds = tuple("full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers))
    common: dict[str, Any] = {
        "architecture": "qwen3_next",
        "layer_types": kinds,
        "rotary_dim": head_dim // 4,
        "rope_theta": 5e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_output_gate": True,
        "qk_norm": True,
        "linear_conv_kernel": 4,
    }
    return ModelConfig(**common, **shape)


SHAPES: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "tiny": _qwen3_next(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=512,
            num_layers=8,
            num_attention_heads=4,
            num_kv_heads=2,
            head_dim=64,
            max_position=65536,
            linear_num_key_heads=4,
            linear_num_value_heads=8,
            linear_key_head_dim=32,
            linear_value_head_dim=32,
            num_experts=16,
            num_experts_per_token=4,
            moe_intermediate_size=128,
            shared_expert_intermediate_size=128,
        ),
        "qwen3-coder-next": _qwen3_next(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=5120,
            num_layers=48,
            num_attention_heads=16,
            num_kv_heads=2,
            head_dim=256,
            max_position=262144,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
            num_experts=512,
            num_experts_per_token=10,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
        ),
        "llama-tiny": ModelConfig(
            architecture="llama",
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=512,
            num_layers=4,
            layer_types=("full_attention",) * 4,
            num_attention_heads=4,
            num_kv_heads=2,
            head_dim=64,
            rotary_dim=64,
            rope_theta=1e5,
            rms_norm_eps=1e-5,
            max_position=65536,
            tie_word_embeddings=True,
        ),
    }
)


@dataclass(frozen=True)
class SyntheticShape:
    """What `synthetic:<shape>[/layers][@seed]` names: a known shape, or its first layers."""

    name: str
    seed: int
    layers: int | None = None

    @property
    def config(self) -> ModelConfig:
        whole = SHAPES[self.name]
        if self.layers is None:
            return whole
        return replace(whole, num_layers=self.layers, layer_types=whole.layer_types[: self.layers])


def parse(model: str) -> SyntheticShape:
    """Read `synthetic:<shape>[/layers][@seed]`; UserError for an unknown shape, or a number that is none."""
    name, _, seed = model.removeprefix(PREFIX).partition("@")
    name, _, layers = name.partition("/")
    if name not in SHAPES:
        raise UserError(f"model {model}: no synthetic shape {name!r}; there are {', '.join(SHAPES)}")
    if seed and not seed.isdecimal():
        raise UserError(f"model {model}: the seed {seed!r} is not a whole number")
    most = SHAPES[name].num_layers
    if layers and not (layers.isdecimal() and 1 <= int(layers) <= most):
        raise UserError(f"model {model}: {layers!r} layers are not to be had; give 1 to {most}")
    return SyntheticShape(name, int(seed or 0), int(layers) if layers else None)


class SyntheticSource:
    """Bfloat16 weights drawn per tensor from the seed and the tensor's name; see `engine.weights.source.Source`.

    Matrices are scaled so that activations keep their size through the layers. A device's values differ from another's.
    """

    kind = "synthetic"

    def __init__(self, config: ModelConfig, seed: int = 0, device: str = "cpu") -> None:
        self.config = config
        self.where = "synthetic"
        self.seed = seed
        self.device = device

    def files(self) -> list[Path]:
        return []

    def types(self) -> dict[str, int]:
        return {"BF16": 1}

    def unexpected(self, specs: list[TensorSpec]) -> list[str]:
        return []

    def tokenizer(self) -> Tokenizer:
        return byte_tokenizer()

    def save_tokenizer(self, directory: Path) -> None:
        save_gguf_tokenizer(tokenizer_metadata(), directory)

    def extras(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def read(self, spec: TensorSpec) -> Weight:
        digest = hashlib.sha256(f"{self.seed}:{spec.name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7]))
        if len(spec.shape) == 1 or spec.tensor_class == "conv":
            return self._vector(spec, generator)
        weight = torch.empty(spec.shape, dtype=torch.bfloat16, device=self.device)
        weight.normal_(0.0, 1.0 if spec.tensor_class == "embedding" else spec.shape[-1] ** -0.5, generator=generator)
        if spec.tensor_class == "expert":
            return PackedExperts("bf16", (spec.shape[0], spec.shape[1], spec.shape[2]), {"weight": weight})
        return Packed("bf16", (spec.shape[0], spec.shape[1]), {"weight": weight})

    def _vector(self, spec: TensorSpec, generator: torch.Generator) -> Tensor:
        values = torch.empty(spec.shape, device=self.device)
        if spec.name.endswith("A_log"):
            return values.uniform_(1.0, 16.0, generator=generator).log()
        if spec.tensor_class == "norm":
            return values.normal_(1.0, 0.1, generator=generator)
        return values.normal_(0.0, 0.5, generator=generator)


def byte_tokenizer() -> Tokenizer:
    """A vocabulary of the 256 bytes and the ChatML markers, with a ChatML template of our own."""
    return Tokenizer.from_gguf(tokenizer_metadata(), "synthetic")


def tokenizer_metadata() -> dict[str, Any]:
    """What a GGUF file would say of `byte_tokenizer`."""
    tokens = [*sorted(ByteLevel.alphabet()), *_CONTROL_TOKENS, *_TEXT_TOKENS]
    types = [_NORMAL] * 256 + [CONTROL] * len(_CONTROL_TOKENS) + [USER_DEFINED] * len(_TEXT_TOKENS)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": _TEMPLATE,
    }
