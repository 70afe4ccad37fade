"""Codes of 2 and 3 bits in row order (`engine.quant.grouped_int`) to floats, 16 at a time.

Each lane shifts a word of 32 bits by its own code's place, so that codes need no order of their own in memory.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from engine.kernels.cpu.simd import F32X16, LANES, intrinsic

_INT = ir.IntType(32)
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(ir.FloatType(), LANES)


def _word(builder: Any, address: Any, offset: int = 0) -> Any:
    at = builder.add(address, ir.Constant(ir.IntType(64), offset))
    word = builder.load(builder.inttoptr(at, _INT.as_pointer()), typ=_INT)
    word.align = 1
    return word


def _splat(builder: Any, word: Any) -> Any:
    one = builder.insert_element(ir.Constant(_INTS, ir.Undefined), word, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES))


def _fields(builder: Any, words: Any, places: list[int], mask: int) -> Any:
    """Bits `mask` of each lane's word from the lane's place on, as float32."""
    codes = builder.and_(builder.lshr(words, ir.Constant(_INTS, places)), ir.Constant(_INTS, [mask] * LANES))
    return builder.sitofp(codes, _FLOATS)


@intrinsic
def load_two_bits(_: Any, address: Any) -> Any:
    """Sixteen codes of 2 bits in the 4 bytes at `address`, as float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fields(builder, _splat(builder, _word(builder, arguments[0])), list(range(0, 32, 2)), 3)

    return F32X16(types.int64), lower


@intrinsic
def load_three_bits(_: Any, address: Any) -> Any:
    """Sixteen codes of 3 bits in the 6 bytes at `address`, as float32; no other byte is read.

    Eight codes are 24 bits: the word at byte 0 has those of the first 8 lanes, the one at byte 2 from its bit 8 on
    those of the others.
    """

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second = (_splat(builder, _word(builder, arguments[0], offset)) for offset in (0, 2))
        words = builder.shuffle_vector(first, second, ir.Constant(_INTS, [0] * 8 + [LANES] * 8))
        return _fields(builder, words, [3 * lane for lane in range(8)] + [8 + 3 * lane for lane in range(8)], 7)

    return F32X16(types.int64), lower
