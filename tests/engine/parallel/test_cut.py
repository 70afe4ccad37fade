"""Parts of packed matrices hold what the whole holds there, and no block is cut."""

import pytest
import torch

from engine.errors import CheckpointError
from engine.quant.cut import column_unit, cut_columns, cut_expert_rows, cut_rows
from engine.quant.formats import Packed, dequantize, join_rows, pack
from engine.quant.linear import stack_experts

WHOLE = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "int4", "int3", "int2", "fp8"])
def test_a_part_holds_what_the_whole_holds_there(format: str) -> None:
    packed = pack(WHOLE, format)
    rows = cut_rows(packed, [range(128), range(256, 384)])
    assert rows.shape == (256, 512)
    assert torch.equal(dequantize(rows), torch.cat([dequantize(packed)[:128], dequantize(packed)[256:384]]))
    columns = cut_columns(packed, range(256, 512))
    assert torch.equal(dequantize(columns), dequantize(packed)[:, 256:])
    assert rows.nbytes < 0.6 * packed.nbytes > columns.nbytes


def test_groups_are_never_parted() -> None:
    for format in ("int4", "int3", "int2"):
        assert [column_unit(format, columns) for columns in (512, 192, 96)] == [128, 64, 32]


def test_every_expert_is_cut_alike() -> None:
    experts = stack_experts([pack(WHOLE * (1 + i), "fp8") for i in range(3)])
    part = cut_expert_rows(experts, [range(128, 256), range(384, 512)])
    for i in range(3):
        whole = dequantize(experts.expert_packed(i))
        assert torch.equal(dequantize(part.expert_packed(i)), torch.cat([whole[128:256], whole[384:]]))


def test_parts_of_rows_in_unlike_formats_keep_their_order() -> None:
    order = torch.randperm(512, generator=torch.Generator().manual_seed(2))
    joined = join_rows([pack(WHOLE[:256], "bf16"), pack(WHOLE[256:], "int8")], order)
    assert "+" in joined.format
    part = cut_rows(joined, [range(100, 300)])
    assert torch.equal(dequantize(part), dequantize(joined)[100:300])
    assert part.nbytes < 0.6 * joined.nbytes


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (pack(WHOLE, "fp8"), r"columns 64 to 128: 64 columns of a 128 block of fp8"),
        (pack(WHOLE, "int4"), r"columns 64 to 128: 64 columns of a 128 block of int4"),
        (pack(WHOLE, "int3"), r"columns 64 to 128: 64 columns of a 128 block of int3"),
        (Packed("Q4_K", (4, 512), {"blocks": torch.zeros(4, 288, dtype=torch.uint8)}), "of a 256 block of Q4_K"),
    ],
)
def test_a_block_is_never_cut(packed: Packed, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        cut_columns(packed, range(64, 128))
    if packed.format == "fp8":
        with pytest.raises(CheckpointError, match="64 rows of a 128 block of fp8"):
            cut_rows(packed, [range(64)])
