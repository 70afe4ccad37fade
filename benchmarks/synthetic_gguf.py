"""A random qwen3next checkpoint in GGUF, small enough for any machine: 8 layers, 64 experts, hidden size 1024.

Blocks are random bytes under scales that keep weights near N(0, 0.02): speed does not depend on what a model says.
Experts, projections and embedding are Q4_K, down projections and the head Q6_K, as in the usual Q4_K_M files.
"""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

LAYERS, FULL_INTERVAL, HIDDEN, EXPERTS, EXPERT_WIDTH, VOCABULARY = 8, 4, 1024, 64, 512, 32768
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 256
KEY_HEADS, VALUE_HEADS, STATE = 8, 16, 128
CHANNELS = (2 * KEY_HEADS + VALUE_HEADS) * STATE
METADATA = {
    "block_count": LAYERS, "context_length": 8192, "embedding_length": HIDDEN, "feed_forward_length": 2560,
    "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 5e6,
    "rope.dimension_count": 64, "expert_count": EXPERTS, "expert_used_count": 10,
    "expert_feed_forward_length": EXPERT_WIDTH, "expert_shared_feed_forward_length": EXPERT_WIDTH,
    "ssm.conv_kernel": 4, "ssm.state_size": STATE, "ssm.group_count": KEY_HEADS,
    "ssm.time_step_rank": VALUE_HEADS, "ssm.inner_size": VALUE_HEADS * STATE,
    "full_attention_interval": FULL_INTERVAL, "vocab_size": VOCABULARY,
}  # fmt: skip
SCALES = {Kind.Q4_K: ((0, 1e-4), (2, 7.5e-4)), Kind.Q6_K: ((208, 1e-5),)}
"""Byte offset and value of the float16 fields of a block."""

Shape = tuple[int, ...]


def write(path: Path, seed: int = 0) -> Path:
    """Write the checkpoint (about 0.6 GB) and return its path; an existing file of that name is taken as it is."""
    if path.exists():
        return path
    part = path.with_suffix(".part")
    writer, rng = gguf.GGUFWriter(part, "qwen3next"), np.random.default_rng(seed)
    for key, value in METADATA.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"qwen3next.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*_alphabet(), *(f"[PAD{i}]" for i in range(256, VOCABULARY))])
    writer.add_token_types([1] * 256 + [3] * (VOCABULARY - 256))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCABULARY - 1)
    for name, data, kind in _tensors(rng):
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return path


def _alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE: printable bytes as themselves, others from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _tensors(rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, Kind | None]]:
    yield "token_embd.weight", _blocks(rng, Kind.Q4_K, (VOCABULARY, HIDDEN)), Kind.Q4_K
    yield "output.weight", _blocks(rng, Kind.Q6_K, (VOCABULARY, HIDDEN)), Kind.Q6_K
    yield "output_norm.weight", np.ones(HIDDEN, np.float32), None
    for layer in range(LAYERS):
        full = (layer + 1) % FULL_INTERVAL == 0
        for name, shape in sorted((_attention() if full else _delta_net()) | _experts()):
            kind = Kind.Q6_K if "down" in name else Kind.Q4_K
            yield f"blk.{layer}.{name}.weight", _blocks(rng, kind, shape), kind
        plain = _plain_attention() if full else _plain_delta_net(rng)
        for name, values in (plain | _plain(rng)).items():
            yield f"blk.{layer}.{name}", values.astype(np.float32), None


def _attention() -> set[tuple[str, Shape]]:
    wide, narrow = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    return {
        ("attn_q", (2 * wide, HIDDEN)), ("attn_k", (narrow, HIDDEN)), ("attn_v", (narrow, HIDDEN)),
        ("attn_output", (HIDDEN, wide)),
    }  # fmt: skip


def _delta_net() -> set[tuple[str, Shape]]:
    inner = VALUE_HEADS * STATE
    return {("attn_qkv", (CHANNELS, HIDDEN)), ("attn_gate", (inner, HIDDEN)), ("ssm_out", (HIDDEN, inner))}


def _experts() -> set[tuple[str, Shape]]:
    up, down = (EXPERT_WIDTH, HIDDEN), (HIDDEN, EXPERT_WIDTH)
    return {
        ("ffn_gate_exps", (EXPERTS, *up)), ("ffn_up_exps", (EXPERTS, *up)), ("ffn_down_exps", (EXPERTS, *down)),
        ("ffn_gate_shexp", up), ("ffn_up_shexp", up), ("ffn_down_shexp", down),
    }  # fmt: skip


def _plain(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "attn_norm.weight": np.ones(HIDDEN), "post_attention_norm.weight": np.ones(HIDDEN),
        "ffn_gate_inp.weight": rng.normal(size=(EXPERTS, HIDDEN), scale=HIDDEN**-0.5),
        "ffn_gate_inp_shexp.weight": rng.normal(size=HIDDEN, scale=HIDDEN**-0.5),
    }  # fmt: skip


def _plain_attention() -> dict[str, np.ndarray]:
    return {"attn_q_norm.weight": np.ones(HEAD_DIM), "attn_k_norm.weight": np.ones(HEAD_DIM)}


def _plain_delta_net(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "ssm_a": -rng.uniform(0.5, 4, VALUE_HEADS), "ssm_dt.bias": rng.normal(size=VALUE_HEADS),
        "ssm_conv1d.weight": rng.normal(size=(CHANNELS, 4), scale=0.5), "ssm_norm.weight": np.ones(STATE),
        "ssm_ba.weight": rng.normal(size=(2 * VALUE_HEADS, HIDDEN), scale=HIDDEN**-0.5),
    }  # fmt: skip


def _blocks(rng: np.random.Generator, kind: Kind, shape: Shape) -> np.ndarray:
    """Random blocks uint8 [..., row bytes] of a tensor of `shape`."""
    width, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(*shape[:-1], shape[-1] // width, size), dtype=np.uint8)
    for at, scale in SCALES[kind]:
        blocks[..., at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)
