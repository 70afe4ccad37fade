"""Writes a trained model as a checkpoint that transformers and the engine load: bfloat16, two shards, official names.

python -m nano.export RUN/checkpoint.pt DIRECTORY
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import UserError
from engine.weights.files import read_json, replacing, write_json
from nano.model import Nano

MODEL = Path(__file__).parent / "model"
"""Tokenizer, chat template and, once trained, the weights; what the package's users get."""
SHARDS = 2
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_STACKS = ("gate_up_proj", "down_proj")


def official_tensors(model: Nano) -> dict[str, Tensor]:
    """Bfloat16 tensors on the CPU under the names of official checkpoints, in which every expert has its own."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        values = parameter.to("cpu", torch.bfloat16)
        prefix, _, last = name.rpartition(".")
        if last not in _STACKS:
            tensors[name] = values
            continue
        for number, expert in enumerate(values):
            parts = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True) if last == "gate_up_proj" else None
            for part, rows in parts or [(last, expert)]:
                tensors[f"{prefix}.{number}.{part}.weight"] = rows.contiguous()
    return tensors


def export(model: Nano, directory: Path) -> None:
    """Write weights, index, config.json and the tokenizer's files; each file appears whole, config.json last."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = official_tensors(model)
    shards = _halves(tensors)
    names = [f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors" for number in range(SHARDS)]
    for name, shard in zip(names, shards, strict=True):
        with replacing(directory / name) as temporary:
            save_file(shard, temporary, metadata={"format": "pt"})
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    size = sum(values.nbytes for values in tensors.values())
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
    for name in _TOKENIZER:
        if directory.resolve() != MODEL.resolve() and (MODEL / name).is_file():
            shutil.copyfile(MODEL / name, directory / name)
    write_json(directory / "config.json", model.values)


def _halves(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in order, cut where half of the bytes are reached."""
    whole = sum(values.nbytes for values in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    before = 0
    for name, values in tensors.items():
        shards[min(SHARDS - 1, before * SHARDS // whole)][name] = values
        before += values.nbytes
    return shards


def read_exported(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `config.json` and the float32 parameters, named as in memory, of an exported model.

    UserError for a directory without shards, CheckpointError where config.json is missing.
    """
    values = read_json(directory / "config.json")
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory}: no *.safetensors; a directory that nano.export wrote is needed")
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name).float() for name in shard.keys()}  # noqa: SIM118 (no mapping)
    return values, _stacked(tensors, values["num_experts"])


def _stacked(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    stacked = {name: values for name, values in tensors.items() if ".mlp.experts." not in name}
    layers = {name.split(".mlp.experts.")[0] for name in tensors if ".mlp.experts." in name}
    for layer in layers:
        prefix = f"{layer}.mlp.experts."
        each = [[tensors[f"{prefix}{e}.{part}_proj.weight"] for part in ("gate", "up", "down")] for e in range(count)]
        stacked[prefix + "gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in each])
        stacked[prefix + "down_proj"] = torch.stack([down for _, _, down in each])
    return stacked


def load_exported(directory: Path, **options: Any) -> Nano:
    """A `Nano` (`options` as its constructor's) with the weights of an exported model."""
    values, tensors = read_exported(directory)
    model = Nano(values, **options)
    model.load_state_dict(tensors)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nano.export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    if not options.checkpoint.is_file():
        parser.error(f"{options.checkpoint}: no such file; nano.train writes RUN/checkpoint.pt")
    saved = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    model = Nano(saved["shape"])
    model.load_state_dict(saved["model"])
    export(model, options.directory)
    print(json.dumps({"step": saved["progress"]["step"], "directory": str(options.directory)}))


if __name__ == "__main__":
    main()
