"""An exported model in transformers and in our engine, and read back."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine import LLM
from nano.export import export, load_exported, official_tensors
from nano.model import Nano, initialise
from nano.shape import NANO


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Nano, Path]:
    """The real shape with random weights that bfloat16 holds exactly; no tensor is left at its neutral value."""
    torch.manual_seed(2)
    model = Nano(dict(NANO) | {"rms_norm_eps": 1e-3})
    initialise(model, 2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith(("A_log", "dt_bias")):
                weight.add_(torch.randn_like(weight) * 0.05)
            weight.copy_(weight.bfloat16().float())
    directory = tmp_path_factory.mktemp("exported")
    export(model, directory)
    return model, directory


def test_transformers_and_the_engine_load_it_and_compute_the_same(exported: tuple[Nano, Path]) -> None:
    model, directory = exported
    ids = torch.randint(0, 4096, (150,), generator=torch.Generator().manual_seed(1))
    want = model.logits(ids)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(ids[None], use_cache=False).logits[0] - want).abs().max() < 1e-4
    llm = LLM(str(directory), quant="f32", device="cpu", num_blocks=32, max_running=1)
    assert (llm.logits(ids.tolist()) - want).abs().max() < 1e-4
    assert want.abs().max() > 1


def test_shards_are_small_whole_and_read_back(exported: tuple[Nano, Path]) -> None:
    model, directory = exported
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) == 2
    assert all(shard.stat().st_size < 16e6 for shard in shards)
    assert not list(directory.glob(".*.part"))
    again = load_exported(directory)
    for name, values in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], values), name


def test_experts_have_official_names() -> None:
    names = official_tensors(Nano())
    assert names["model.layers.3.mlp.experts.7.up_proj.weight"].shape == (128, 256)
    assert not [name for name in names if "gate_up_proj" in name]
