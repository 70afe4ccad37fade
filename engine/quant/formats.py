"""Weight-only formats: what a matrix is packed into, and which format a quantization level gives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from engine.errors import CheckpointError, UserError
from engine.quant import gguf_words, int4
from engine.quant.gguf_blocks import BLOCK_TYPES, expand

Level = Literal["f32", "bf16", "fp8", "int8", "int4-fp8", "int4", "as-stored"]
TensorClass = Literal[
    "linear", "expert", "embedding", "lm_head", "router", "shared_expert_gate", "delta_ba", "norm", "conv", "vector"
]
LEVELS: tuple[Level, ...] = get_args(Level)
PLAIN: Mapping[str, torch.dtype] = MappingProxyType(
    {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
)
FP8_BLOCK = 128
TILE_ELEMENTS = 1 << 19
ROW_BLOCK = 128  # rows in which every format's layout repeats
_FP8_MAX = 448.0


@dataclass(frozen=True)
class Packed:
    """A matrix [out, in] as it lies in memory.

    `tensors` by format, all on one device:
    - f32, bf16, f16: `weight` [out, in].
    - int8: `codes` int8 [out, in], `scale` bf16 [out]; w = codes * scale.
    - int4: `codes` uint8 [out, in / 2] (see `engine.quant.int4`), `scales_zeros` bf16 [in / group, out, 2];
      w = (code - 8) * scale + zero, code 0 to 15.
    - fp8: `weight` float8_e4m3fn [out, in], `scale` float32 [ceil(out / 128), ceil(in / 128)]; w = weight * scale.
    - a GGUF block type: `blocks` uint8 [out, row_bytes], on CPU as in files, elsewhere in words where those suit
      the type and the width (see `engine.kernels.block_words`).
    - `A+B`: row parts in unlike formats, tensors named `0.x`, `1.x`, ...; if there is `order` int64 [out], row i of
      the matrix is row `order[i]` of the parts one after another.

    Experts hold the same tensors with a leading expert dimension (`engine.quant.linear.PackedExperts`).
    """

    format: str
    shape: tuple[int, int]
    tensors: dict[str, Tensor]
    group: int = 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def to(self, device: str | torch.device) -> "Packed":
        """The same matrix on another device."""
        target = torch.device(device)
        moved = gguf_words.move(self.tensors, self.format, target)
        if self.format == "int4" and target.type != self.device.type:
            moved["codes"] = int4.pack_codes(int4.unpack_codes(self.tensors["codes"]).to(target))
        return replace(self, tensors=moved)

    def slice_rows(self, start: int, stop: int) -> "Packed":
        """Rows [start, stop) without a copy; `start` is a multiple of 128."""
        scale_rows = slice(start // FP8_BLOCK, -(-stop // FP8_BLOCK))
        sliced = {
            name: tensor[:, start:stop]
            if name == "scales_zeros"
            else tensor[scale_rows]
            if name == "scale" and self.format == "fp8"
            else tensor[start:stop]
            for name, tensor in self.tensors.items()
        }
        return replace(self, shape=(stop - start, self.shape[1]), tensors=sliced)


def recipe(level: Level, tensor_class: TensorClass) -> str:
    """The format of a tensor class at a level: a format name, or `as-stored` for whatever the checkpoint holds.

    Norms, the convolution and DeltaNet's decay vectors are float32 always: they are small and enter float32
    arithmetic. Router, shared-expert gate and DeltaNet's `ba` projection decide where a token goes and how fast a
    state forgets, for 0.1% of the bytes: they are never quantized below bfloat16. Embedding and lm_head are int8 at
    int8 and int4: an error in a logit is not averaged over later layers, and embedding rows are looked up one by one,
    so 4 bits would cost more here than they save. At fp8 both stay bfloat16, as in the official FP8 checkpoint.
    int4-fp8 has int4 experts, which are nearly all of the weights, and is fp8 in all else.
    """
    if tensor_class in ("norm", "conv", "vector"):
        return "f32"
    if level in ("f32", "bf16", "as-stored"):
        return level
    if level == "int4-fp8":
        return "int4" if tensor_class == "expert" else recipe("fp8", tensor_class)
    if tensor_class in ("router", "shared_expert_gate", "delta_ba"):
        return "bf16"
    if tensor_class in ("embedding", "lm_head"):
        return "bf16" if level == "fp8" else "int8"
    return level


def check_level(level: str) -> Level:
    """`level` itself if it is one, else a `UserError` that lists them."""
    for known in LEVELS:
        if level == known:
            return known
    raise UserError(f"quant {level!r} is unknown; it is one of {', '.join(LEVELS)}")


def int4_group(columns: int) -> int:
    """The largest group of 128, 64 or 32 that divides `columns`."""
    for group in int4.GROUPS:
        if columns % group == 0:
            return group
    raise CheckpointError(f"int4 needs input features that are a multiple of 32, not {columns}")


def tile_rows(columns: int) -> int:
    """Rows of a tile of about `TILE_ELEMENTS` weights: a multiple of 128."""
    return max(ROW_BLOCK, TILE_ELEMENTS // columns // ROW_BLOCK * ROW_BLOCK)


def pack(weight: Tensor, format: str) -> Packed:
    """Pack a floating-point matrix [out, in] on its own device, rounding to nearest; `CheckpointError` if it cannot be.

    Scales are rounded to the precision they are stored in before codes are computed, so that codes make up for it.
    """
    if format not in _PACKERS:
        raise CheckpointError(f"format {format!r} cannot be packed into; it is one of {', '.join(_PACKERS)}")
    tensors, group = _PACKERS[format](weight)
    return Packed(format, (weight.shape[0], weight.shape[1]), tensors, group)


def repack(stored: Packed, format: str) -> Packed:
    """`stored` in another format, tile by tile, so that no float32 copy of the whole is made."""
    if format in ("as-stored", stored.format):
        return stored
    if "+" in stored.format:
        return pack(dequantize(stored), format)
    rows, step = stored.shape[0], tile_rows(stored.shape[1])
    return concat_rows(
        [pack(dequantize(stored.slice_rows(start, min(start + step, rows))), format) for start in range(0, rows, step)]
    )


def concat_rows(parts: list[Packed]) -> Packed:
    """One matrix from row blocks of one format; all but the last have a multiple of 128 rows."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    tensors = {
        name: torch.cat([part.tensors[name] for part in parts], dim=1 if name == "scales_zeros" else 0)
        for name in first.tensors
    }
    return Packed(first.format, (sum(part.shape[0] for part in parts), first.shape[1]), tensors, first.group)


def join_rows(parts: list[Packed], order: Tensor | None = None) -> Packed:
    """One matrix whose rows are those of `parts` one after another, picked by `order` int64 [out] if given.

    Parts of one format become a plain matrix of it wherever its layout allows.
    """
    shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
    formats = {part.format for part in parts}
    by_row = formats <= set(PLAIN) | set(BLOCK_TYPES) | {"int8"}
    if len(formats) == 1 and (by_row or (order is None and not any(p.shape[0] % ROW_BLOCK for p in parts[:-1]))):
        joined = concat_rows(parts)
        return joined if order is None else replace(joined, tensors={n: t[order] for n, t in joined.tensors.items()})
    tensors = {f"{i}.{name}": tensor for i, part in enumerate(parts) for name, tensor in part.tensors.items()}
    if order is not None:
        tensors["order"] = order
    return Packed("+".join(part.format for part in parts), shape, tensors, max(part.group for part in parts))


def row_parts(packed: Packed) -> tuple[list[Packed], Tensor | None]:
    """The parts and the order that `join_rows` was given; a matrix of one format is its own only part."""
    if "+" not in packed.format:
        return [packed], None
    parts = []
    for index, format in enumerate(packed.format.split("+")):
        mark = f"{index}."
        tensors = {n.removeprefix(mark): tensor for n, tensor in packed.tensors.items() if n.startswith(mark)}
        rows = next(iter(tensors.values())).shape[0]
        parts.append(Packed(format, (rows, packed.shape[1]), tensors, packed.group))
    return parts, packed.tensors.get("order")


def dequantize(packed: Packed, rows: Tensor | None = None) -> Tensor:
    """Float32 [out, in], or [n, in] for row indices `rows` int64 [n]."""
    if "+" not in packed.format:
        return _READERS[packed.format](packed, rows)
    parts, order = row_parts(packed)
    whole = torch.cat([dequantize(part) for part in parts])
    whole = whole if order is None else whole[order]
    return whole if rows is None else whole[rows]


def _pack_plain(dtype: torch.dtype) -> Callable[[Tensor], tuple[dict[str, Tensor], int]]:
    return lambda weight: ({"weight": weight.to(dtype).contiguous()}, 0)


def _pack_int8(weight: Tensor) -> tuple[dict[str, Tensor], int]:
    values = weight.float()
    scale = _storable(values.abs().amax(dim=1) / 127)
    codes = (values / scale.float().unsqueeze(1)).round().clamp(-127, 127)
    return {"codes": codes.to(torch.int8), "scale": scale}, 0


def _storable(scale: Tensor) -> Tensor:
    """Scales in bfloat16, with 1 for an all-zero group, whose codes are 0 anyway."""
    rounded = scale.bfloat16()
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)


def _pack_int4(weight: Tensor) -> tuple[dict[str, Tensor], int]:
    out, columns = weight.shape
    group = int4_group(columns)
    values = weight.float().reshape(out, -1, group)
    least, most = values.aminmax(dim=2)
    scale = _storable((most - least) / 15)
    zero = (least + 8 * scale.float()).bfloat16()
    codes = ((values - zero.float().unsqueeze(2)) / scale.float().unsqueeze(2)).round().clamp(-8, 7) + 8
    scales_zeros = torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous()
    return {"codes": int4.pack_codes(codes.to(torch.uint8).reshape(out, columns)), "scales_zeros": scales_zeros}, group


def _pack_fp8(weight: Tensor) -> tuple[dict[str, Tensor], int]:
    out, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % FP8_BLOCK, 0, -out % FP8_BLOCK))
    blocks = padded.reshape(padded.shape[0] // FP8_BLOCK, FP8_BLOCK, -1, FP8_BLOCK)
    scale = (blocks.abs().amax(dim=(1, 3)) / _FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:out, :columns]
    return {"weight": codes.to(torch.float8_e4m3fn).contiguous(), "scale": scale}, FP8_BLOCK


def _read_plain(packed: Packed, rows: Tensor | None) -> Tensor:
    return _selected(packed.tensors["weight"], rows).float()


def _read_int8(packed: Packed, rows: Tensor | None) -> Tensor:
    codes, scale = (_selected(packed.tensors[name], rows) for name in ("codes", "scale"))
    return codes.float().mul_(scale.float().unsqueeze(1))


def _read_int4(packed: Packed, rows: Tensor | None) -> Tensor:
    codes, scales_zeros = packed.tensors["codes"], packed.tensors["scales_zeros"]
    if rows is not None:
        scales_zeros = scales_zeros[:, rows]
    values = int4.unpack_codes(_selected(codes, rows)).float()
    scale, zero = scales_zeros.float().transpose(0, 1).unsqueeze(2).unbind(-1)
    return values.reshape(values.shape[0], -1, packed.group).sub_(8).mul_(scale).add_(zero).flatten(1)


def _read_fp8(packed: Packed, rows: Tensor | None) -> Tensor:
    weight, scale = packed.tensors["weight"], packed.tensors["scale"]
    at = torch.arange(weight.shape[0], device=weight.device) if rows is None else rows
    chosen = weight if rows is None else weight.view(torch.uint8)[rows].view(torch.float8_e4m3fn)
    factors = scale[at // FP8_BLOCK].repeat_interleave(FP8_BLOCK, dim=1)[:, : weight.shape[1]]
    return chosen.float().mul_(factors)


def _read_blocks(packed: Packed, rows: Tensor | None) -> Tensor:
    blocks = gguf_words.stored_order(_selected(packed.tensors["blocks"], rows), packed.format)
    return expand(blocks, BLOCK_TYPES[packed.format])


def _selected(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor[rows]


_PACKERS: Mapping[str, Callable[[Tensor], tuple[dict[str, Tensor], int]]] = MappingProxyType(
    {name: _pack_plain(dtype) for name, dtype in PLAIN.items()}
    | {"int8": _pack_int8, "int4": _pack_int4, "fp8": _pack_fp8}
)
_READERS: Mapping[str, Callable[[Packed, Tensor | None], Tensor]] = MappingProxyType(
    dict.fromkeys(PLAIN, _read_plain)
    | {"int8": _read_int8, "int4": _read_int4, "fp8": _read_fp8}
    | dict.fromkeys(BLOCK_TYPES, _read_blocks)
)
