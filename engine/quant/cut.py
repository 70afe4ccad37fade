"""Parts of packed matrices: rows, columns or experts in memory of their own. No scale's block is ever cut.

A part keeps the codes and scales of the whole, so that ranks which hold parts compute what one would.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.quant.formats import FP8_BLOCK, PLAIN, Packed, int4_group
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.gguf_words import device_order, stored_order
from engine.quant.linear import PackedExperts

Tensors = dict[str, Tensor]


def cut_rows(packed: Packed, ranges: Sequence[range]) -> Packed:
    """Rows `ranges` of a matrix one after another; CheckpointError where an fp8 block would be cut."""
    tensors, rows = _rows(packed.format, packed.tensors, ranges, packed.shape[0])
    return replace(packed, shape=(rows, packed.shape[1]), tensors=tensors)


def cut_columns(packed: Packed, columns: range) -> Packed:
    """Columns of a matrix; CheckpointError where a block or a group of the format would be cut."""
    tensors = _columns(packed.format, packed.tensors, columns, packed.shape[1], packed.group)
    return replace(packed, shape=(packed.shape[0], len(columns)), tensors=tensors)


def cut_expert_rows(experts: PackedExperts, ranges: Sequence[range]) -> PackedExperts:
    """`cut_rows` of every expert."""
    count, out, columns = experts.shape
    tensors, rows = _rows(experts.format, experts.tensors, ranges, out)
    return replace(experts, shape=(count, rows, columns), tensors=tensors)


def cut_expert_columns(experts: PackedExperts, columns: range) -> PackedExperts:
    """`cut_columns` of every expert."""
    count, out, whole = experts.shape
    tensors = _columns(experts.format, experts.tensors, columns, whole, experts.group)
    return replace(experts, shape=(count, out, len(columns)), tensors=tensors)


def cut_experts(experts: PackedExperts, numbers: range) -> PackedExperts:
    """Experts `numbers` of a stack."""
    tensors = {name: tensor[numbers.start : numbers.stop].clone() for name, tensor in experts.tensors.items()}
    return replace(experts, shape=(len(numbers), *experts.shape[1:]), tensors=tensors)


def column_unit(format: str, columns: int) -> int:
    """Columns that a cut may not part, in a matrix of `columns`."""
    if format in PLAIN or format == "int8":
        return 1
    if format == "int4":
        return int4_group(columns)
    return FP8_BLOCK if format == "fp8" else BLOCK_TYPES[format].width


def _rows(format: str, tensors: Tensors, ranges: Sequence[range], whole: int) -> tuple[Tensors, int]:
    if format == "fp8":
        for rows in ranges:
            _check("rows", rows, whole, FP8_BLOCK, format)
    at = torch.cat([torch.arange(rows.start, rows.stop) for rows in ranges])
    if "+" in format:
        return _joined_rows(format, tensors, at), len(at)
    return _pick_rows(format, tensors, at), len(at)


def _pick_rows(format: str, tensors: Tensors, at: Tensor) -> Tensors:
    """Rows `at` of one format's tensors; of fp8 they are whole blocks."""
    if format == "int8":
        return {name: _select(tensor, -1 if name == "scale" else -2, at) for name, tensor in tensors.items()}
    if format != "fp8":  # [out, in], [out, bytes], and [groups, out, 2] of int4
        return {name: _select(tensor, -2, at) for name, tensor in tensors.items()}
    blocks = torch.unique_consecutive(at // FP8_BLOCK)
    return {name: _select(tensor, -2, blocks if name == "scale" else at) for name, tensor in tensors.items()}


def _joined_rows(format: str, tensors: Tensors, at: Tensor) -> Tensors:
    """Rows of a matrix in parts of unlike formats: of each part those that are wanted, in the order wanted."""
    order, formats = tensors.get("order"), format.split("+")
    if order is not None:
        at = order.cpu()[at]
    if "fp8" in formats:
        raise CheckpointError(f"rows of a matrix in the formats {format} cannot be divided between ranks")
    cut: Tensors = {}
    first, kept, places = 0, 0, torch.empty_like(at)
    for index, part in enumerate(formats):
        own = {n.removeprefix(f"{index}."): t for n, t in tensors.items() if n.startswith(f"{index}.")}
        size = own["codes" if "codes" in own else next(iter(own))].shape[-2]
        mine = ((at >= first) & (at < first + size)).nonzero().flatten()
        cut |= {f"{index}.{n}": t for n, t in _pick_rows(part, own, at[mine] - first).items()}
        places[mine] = torch.arange(kept, kept + len(mine))
        first, kept = first + size, kept + len(mine)
    if order is not None:
        cut["order"] = places.to(order.device)
    return cut


def _columns(format: str, tensors: Tensors, columns: range, whole: int, group: int) -> Tensors:
    if "+" in format:
        raise CheckpointError(f"columns of a matrix in the formats {format} cannot be divided between ranks")
    _check("columns", columns, whole, group if format == "int4" else column_unit(format, whole), format)
    start, stop = columns.start, columns.stop
    cuts: dict[str, Callable[[Tensor], Tensor]] = {
        "codes": lambda t: t[..., start // 2 : stop // 2] if format == "int4" else t[..., start:stop],
        "weight": lambda t: t[..., start:stop],
        "scale": lambda t: t if format == "int8" else t[..., start // FP8_BLOCK : -(-stop // FP8_BLOCK)],
        "scales_zeros": lambda t: t[..., start // group : stop // group, :, :],
        "blocks": lambda t: _block_columns(t, format, columns, whole),
    }
    return {name: cuts[name](tensor).clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _block_columns(blocks: Tensor, format: str, columns: range, whole: int) -> Tensor:
    """Columns of blocks in their device's order, in the same order."""
    stored = stored_order(blocks, format)
    cut = stored[..., columns.start * stored.shape[-1] // whole : columns.stop * stored.shape[-1] // whole]
    return cut if blocks.device.type == "cpu" else device_order(cut, format)


def _check(what: str, part: range, whole: int, unit: int, format: str) -> None:
    if part.start % unit or (part.stop % unit and part.stop != whole):
        loose = part.stop % unit or part.start % unit
        raise CheckpointError(
            f"a rank would hold {what} {part.start} to {part.stop}: {loose} {what} of a {unit} block of {format}; "
            "choose another tensor_parallel_size or level"
        )


def _select(tensor: Tensor, dim: int, at: Tensor) -> Tensor:
    if tensor.dtype == torch.float8_e4m3fn:
        return _select(tensor.view(torch.uint8), dim, at).view(tensor.dtype)
    return tensor.index_select(dim, at.to(tensor.device))
