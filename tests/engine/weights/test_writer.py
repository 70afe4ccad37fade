"""`quantize`: what is loaded back is bit for bit what packing at load gives, and an interruption loses one shard."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError, UserError
from engine.quant.formats import LEVELS
from engine.weights import writer
from engine.weights.loader import Checkpoint, load
from engine.weights.writer import quantize

PACKING = [level for level in LEVELS if level != "as-stored"]


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.config == expected.config
    assert found.chat_template == expected.chat_template
    assert found.identity["recipe"] == expected.identity["recipe"]
    assert found.tokenizer.encode("héllo 12") == expected.tokenizer.encode("héllo 12")
    assert set(found.weights) == set(expected.weights)
    for name, weight in expected.weights.items():
        again = found.weights[name]
        if isinstance(weight, torch.Tensor) or isinstance(again, torch.Tensor):
            assert torch.equal(again, weight), name
            continue
        assert (again.format, again.shape, again.group) == (weight.format, weight.shape, weight.group)
        for part, tensor in weight.tensors.items():
            assert torch.equal(again.tensors[part].view(torch.uint8), tensor.view(torch.uint8)), (name, part)


@pytest.mark.parametrize("level", PACKING)
@pytest.mark.parametrize("model", ["llama", "qwen3_next"])
def test_loads_back_identically(request: pytest.FixtureRequest, tmp_path: Path, model: str, level: str) -> None:
    directory, _ = request.getfixturevalue(f"save_{model}")()
    quantize(str(directory), tmp_path / "out", level)
    assert_same(load(str(tmp_path / "out"), "as-stored"), load(str(directory), level))


def test_gguf_and_synthetic_models_keep_their_tokenizer(tmp_path: Path) -> None:
    model = "synthetic:llama-tiny@2"
    quantize(model, tmp_path / "once", "int4")
    assert_same(load(str(tmp_path / "once"), "int4"), load(model, "int4"))
    quantize(str(tmp_path / "once"), tmp_path / "twice", "int4")
    assert_same(load(str(tmp_path / "twice"), "int4"), load(model, "int4"))


def test_continues_after_an_interruption(save_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = save_llama()
    out, written = tmp_path / "out", []
    save = writer.save_file

    def dies_in_the_third(tensors: Any, file: Path, metadata: Any) -> None:
        written.append(file)
        if len(written) == 3:
            file.write_bytes(b"half a shard")
            raise KeyboardInterrupt
        save(tensors, file, metadata)

    monkeypatch.setattr(writer, "save_file", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        quantize(str(directory), out, "int8", shard_bytes=40_000)
    finished = {file: file.stat().st_mtime_ns for file in out.glob("model-*.safetensors")}
    assert len(finished) == 2
    with pytest.raises(CheckpointError, match=r"config.json: no such file"):
        load(str(out), "as-stored")
    quantize(str(directory), out, "int8", shard_bytes=40_000)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert len(list(out.glob("model-*.safetensors"))) == len(written) - 1 > 3
    assert_same(load(str(out), "as-stored"), load(str(directory), "int8"))
    before = len(written)
    quantize(str(directory), out, "int8", shard_bytes=40_000)
    assert len(written) == before
    assert not list(out.glob(".*"))


def test_refuses_what_it_would_spoil(save_llama: Any, tmp_path: Path) -> None:
    directory, _ = save_llama()
    out = tmp_path / "out"
    quantize(str(directory), out, "int8")
    with pytest.raises(UserError, match=r"quantize.json: format is 'int8', not 'int4'; choose a new directory"):
        quantize(str(directory), out, "int4")
    with pytest.raises(UserError, match="not empty; choose a new directory"):
        quantize(str(directory), directory, "int4")
    with pytest.raises(UserError, match="nothing to quantize to"):
        quantize(str(directory), out, "as-stored")
    next(out.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"no such file; config.json lists it"):
        load(str(out), "as-stored")
