"""Which part of every tensor a rank holds.

Query heads, DeltaNet's key and value heads with their channels, and the rows of gated MLPs are divided evenly; the
projections back to the hidden size are divided by columns, and their results added up. Where there are more ranks than
KV heads, these are held by several ranks each. The head is divided by vocabulary, since every step reads it whole; the
embedding, of which a step reads one row a token, is held whole by each rank: dividing it would save memory (0.6 GB of
80 for Qwen3-Coder-Next) and no time, for one more collective a step.

Experts are divided by width where no block of their format is cut: each rank then reads 1/N of each chosen expert. By
expert a step waits for the rank whose experts were chosen most often: with 10 of 512 on two ranks it reads on average
6.2 experts, a quarter more. So that is left for formats whose blocks forbid width (fp8: 64 rows of a 128 block). A
shared expert that cannot be divided is held by rank 0 alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import CheckpointError, UserError
from engine.parallel.group import vocabulary_part
from engine.quant.cut import (
    column_unit,
    cut_columns,
    cut_expert_columns,
    cut_expert_rows,
    cut_experts,
    cut_rows,
)
from engine.quant.formats import FP8_BLOCK, Level, Packed, recipe
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.linear import PackedExperts
from engine.weights.layout import TensorSpec
from engine.weights.source import Weight

_PLAIN_TYPES = {"f32", "f16", "bf16", "int8", "tensor"}


@dataclass(frozen=True)
class Shard:
    """The part of rank `rank` of `size`; `width_unit` are the rows and columns of an expert that may not be parted."""

    config: ModelConfig
    rank: int
    size: int
    width_unit: int

    @classmethod
    def of(cls, config: ModelConfig, rank: int, size: int, level: Level, types: Mapping[str, int]) -> "Shard":
        """`types` are the source's, for level as-stored. UserError where `size` does not divide the model."""
        _check_size(config, size)
        return cls(config, rank, size, _width_unit(config, level, types))

    @property
    def experts_by_width(self) -> bool:
        return self._divides_width(self.config.moe_intermediate_size)

    def cut(self, weight: Weight, spec: TensorSpec) -> Weight | None:
        """This rank's part of a packed tensor, None where it has none; CheckpointError where a block would be cut."""
        if self.size == 1:
            return weight
        try:
            return self._cut(weight, spec)
        except CheckpointError as error:
            raise CheckpointError(f"tensor {spec.name}: {error}") from error

    def _cut(self, weight: Weight, spec: TensorSpec) -> Weight | None:
        if isinstance(weight, PackedExperts):
            return self._experts(weight, spec)
        part = re.sub(r"^model\.layers\.\d+\.", "", spec.name)
        if self._is_first_ranks(part):
            return weight if self.rank == 0 else None
        if isinstance(weight, Packed) and part.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            return cut_columns(weight, _share(spec.shape[1], self.rank, self.size))
        rows = self._rows(part, spec.shape[0])
        if rows is None:
            return weight
        return _rows_of(weight, rows) if isinstance(weight, Tensor) else cut_rows(weight, rows)

    def _is_first_ranks(self, part: str) -> bool:
        """Whether a tensor counts once in the ranks' sum and cannot be divided."""
        whole = not self._divides_width(self.config.shared_expert_intermediate_size)
        return part == "self_attn.o_proj.bias" or (".shared_expert." in part and whole)

    def _rows(self, part: str, count: int) -> list[range] | None:
        """The rows of a tensor that this rank holds; None for all."""
        config, rank, size = self.config, self.rank, self.size
        if part.startswith(("self_attn.k_proj", "self_attn.v_proj")) and size > config.num_kv_heads:
            return [_share(count, rank * config.num_kv_heads // size, config.num_kv_heads)]
        if part == "linear_attn.conv1d.weight":
            keys = config.linear_num_key_heads * config.linear_key_head_dim
            sizes = (keys, keys, count - 2 * keys)
            starts = (0, keys, 2 * keys)
            return [_share(n, rank, size, start) for n, start in zip(sizes, starts, strict=True)]
        if part == "lm_head.weight":
            return [vocabulary_part(count, rank, size)]
        divided = (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "linear_attn.in_proj", "linear_attn.A_log",
            "linear_attn.dt_bias", "mlp.gate_proj", "mlp.up_proj", "mlp.shared_expert.gate_proj",
            "mlp.shared_expert.up_proj",
        )  # fmt: skip
        return [_share(count, rank, size)] if part.startswith(divided) else None

    def _experts(self, experts: PackedExperts, spec: TensorSpec) -> PackedExperts:
        if not self.experts_by_width:
            return cut_experts(experts, _share(spec.shape[0], self.rank, self.size))
        inner = self.config.moe_intermediate_size
        own = _share(inner, self.rank, self.size)
        if spec.name.endswith("down_proj"):
            return cut_expert_columns(experts, own)
        return cut_expert_rows(experts, [own, range(own.start + inner, own.stop + inner)])

    def _divides_width(self, width: int) -> bool:
        return width % (self.size * self.width_unit) == 0


def local_config(config: ModelConfig, size: int) -> ModelConfig:
    """The shape of what one of `size` ranks computes: its heads; the router's experts are all of them."""
    return replace(
        config,
        num_attention_heads=config.num_attention_heads // size,
        num_kv_heads=max(1, config.num_kv_heads // size),
        linear_num_key_heads=config.linear_num_key_heads // size,
        linear_num_value_heads=config.linear_num_value_heads // size,
    )


def _share(count: int, rank: int, size: int, start: int = 0) -> range:
    each = count // size
    return range(start + rank * each, start + (rank + 1) * each)


def _rows_of(tensor: Tensor, ranges: list[range]) -> Tensor:
    return torch.cat([tensor[rows.start : rows.stop] for rows in ranges])


def _check_size(config: ModelConfig, size: int) -> None:
    def refuse(count: int, what: str) -> UserError:
        return UserError(f"tensor_parallel_size {size} does not divide {count} {what} of this model")

    if size < 1:
        raise UserError(f"tensor_parallel_size is {size}; it must be at least 1")
    divided = {
        "attention heads": config.num_attention_heads,
        "DeltaNet key heads": config.linear_num_key_heads,
        "DeltaNet value heads": config.linear_num_value_heads,
    }
    if config.num_experts == 0:
        divided["MLP rows"] = config.intermediate_size
    for what, count in divided.items():
        if count % size:
            raise refuse(count, what)
    if config.num_kv_heads % size and size % config.num_kv_heads:
        raise refuse(config.num_kv_heads, "KV heads, nor do these divide it,")
    if config.num_experts % size:
        raise refuse(config.num_experts, "experts")


def _width_unit(config: ModelConfig, level: Level, types: Mapping[str, int]) -> int:
    if not config.num_experts:
        return 1
    if level != "as-stored":
        return column_unit(recipe(level, "expert"), config.moe_intermediate_size)
    if {name.lower() for name in types} <= _PLAIN_TYPES:
        return 1
    return max([FP8_BLOCK] + [kind.width for name, kind in BLOCK_TYPES.items() if name in types])
