"""Vectors of 16 floats for numba: what LLVM's loop vectoriser does not find by itself in packed weights.

Functions take addresses (int64) as numba compiles no pointers; alignment is never assumed. LLVM lowers a vector of 16
to one AVX-512 register, two AVX2 or four NEON ones, so that kernels written with these run on any processor.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray  # type: ignore[attr-defined]
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import register_jitable, register_model

from engine.kernels.cpu.compiler import jit

LANES = 16
_FLOAT, _HALF, _BYTE, _SHORT, _INT = ir.FloatType(), ir.HalfType(), ir.IntType(8), ir.IntType(16), ir.IntType(32)
_FLOATS, _BYTES = ir.VectorType(_FLOAT, LANES), ir.VectorType(_BYTE, LANES)


class VectorType(types.Type):
    """A numba type that is one LLVM vector."""

    def __init__(self, name: str, element: ir.Type) -> None:
        super().__init__(name=name)
        self.lowered = ir.VectorType(element, LANES)


class VectorModel(models.PrimitiveModel):
    """How a vector lies in a variable: as itself."""

    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, kind.lowered)  # type: ignore[no-untyped-call]


register_model(VectorType)(VectorModel)
F32X16 = VectorType("f32x16", _FLOAT)
U8X16 = VectorType("u8x16", _BYTE)


def intrinsic(function: Callable[..., Any]) -> Any:
    """numba's decorator: `function` takes a typing context and argument types; returns a signature and a lowering."""
    return numba_intrinsic(function)


def _pointer(builder: Any, address: Any, pointee: ir.Type) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def _load(builder: Any, address: Any, kind: ir.Type) -> Any:
    value = builder.load(_pointer(builder, address, kind), typ=kind)
    value.align = 1
    return value


@intrinsic
def zeros(_: Any) -> Any:
    """Sixteen zeros."""
    return F32X16(), lambda context, builder, signature, arguments: ir.Constant(_FLOATS, [0.0] * LANES)


@intrinsic
def splat(_: Any, value: Any) -> Any:
    """Sixteen times `value` float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), arguments[0], ir.Constant(_INT, 0))
        return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))

    return F32X16(types.float32), lower


@intrinsic
def load(_: Any, address: Any) -> Any:
    """Sixteen float32 at `address`."""
    return F32X16(types.int64), lambda context, builder, signature, arguments: _load(builder, arguments[0], _FLOATS)


@intrinsic
def load_halves(_: Any, address: Any) -> Any:
    """Sixteen float16 at `address`, as float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(_load(builder, arguments[0], ir.VectorType(_HALF, LANES)), _FLOATS)

    return F32X16(types.int64), lower


@intrinsic
def load_bfloats(_: Any, address: Any) -> Any:
    """Sixteen bfloat16 at `address`, as float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.VectorType(_INT, LANES)
        bits = builder.zext(_load(builder, arguments[0], ir.VectorType(_SHORT, LANES)), wide)
        return builder.bitcast(builder.shl(bits, ir.Constant(wide, [16] * LANES)), _FLOATS)

    return F32X16(types.int64), lower


@intrinsic
def load_signed(_: Any, address: Any) -> Any:
    """Sixteen int8 at `address`, as float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(_load(builder, arguments[0], _BYTES), _FLOATS)

    return F32X16(types.int64), lower


@intrinsic
def load_bytes(_: Any, address: Any) -> Any:
    """Sixteen bytes at `address`."""
    return U8X16(types.int64), lambda context, builder, signature, arguments: _load(builder, arguments[0], _BYTES)


@intrinsic
def store(_: Any, address: Any, value: Any) -> Any:
    """Write sixteen float32 to `address`."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], _pointer(builder, arguments[0], _FLOATS), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, F32X16), lower


@intrinsic
def shift_mask(_: Any, values: Any, shift: Any, mask: Any) -> Any:
    """`(values >> shift) & mask` of bytes, the same shift and mask (uint8) for all."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def same(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(_BYTES, ir.Undefined), value, ir.Constant(_INT, 0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))

        return builder.and_(builder.lshr(arguments[0], same(arguments[1])), same(arguments[2]))

    return U8X16(U8X16, types.uint8, types.uint8), lower


@intrinsic
def merge_bits(_: Any, low: Any, high: Any, shift: Any) -> Any:
    """`low | (high << shift)` of bytes."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = builder.insert_element(ir.Constant(_BYTES, ir.Undefined), arguments[2], ir.Constant(_INT, 0))
        shift = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))
        return builder.or_(arguments[0], builder.shl(arguments[1], shift))

    return U8X16(U8X16, U8X16, types.uint8), lower


@intrinsic
def to_floats(_: Any, values: Any) -> Any:
    """Bytes 0 to 255 as float32."""
    return F32X16(U8X16), lambda context, builder, signature, arguments: builder.uitofp(arguments[0], _FLOATS)


@intrinsic
def e4m3_to_floats(_: Any, values: Any) -> Any:
    """Sixteen e4m3 bytes (sign, 4 bits of exponent, 3 of mantissa) as float32; bytes that are no number give 480.

    The exponent's bias is 7 where float32 has 127: the bits are put in place as they are, subnormal ones too, and the
    difference is a power of two to multiply with.
    """

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.VectorType(_INT, LANES)

        def same(value: int) -> Any:
            return ir.Constant(wide, [value] * LANES)

        bits = builder.zext(arguments[0], wide)
        sign = builder.shl(builder.and_(bits, same(0x80)), same(24))
        magnitude = builder.shl(builder.and_(bits, same(0x7F)), same(20))
        floats = builder.bitcast(builder.or_(sign, magnitude), _FLOATS)
        return builder.fmul(floats, ir.Constant(_FLOATS, [2.0**120] * LANES))

    return F32X16(U8X16), lower


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c`, rounded once where the processor can."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        signature = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, signature, "llvm.fmuladd.v16f32"), arguments)

    return F32X16(F32X16, F32X16, F32X16), lower


@intrinsic
def multiply(_: Any, a: Any, b: Any) -> Any:
    """`a * b`."""
    return F32X16(F32X16, F32X16), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def add(_: Any, a: Any, b: Any) -> Any:
    """`a + b`."""
    return F32X16(F32X16, F32X16), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def total(_: Any, values: Any) -> Any:
    """The sum of the sixteen, pairwise."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, width = arguments[0], LANES
        while width > 1:
            width //= 2
            half = ir.VectorType(_INT, width)
            low = builder.shuffle_vector(vector, vector, ir.Constant(half, list(range(width))))
            high = builder.shuffle_vector(vector, vector, ir.Constant(half, list(range(width, 2 * width))))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(_INT, 0))

    return types.float32(F32X16), lower


@intrinsic
def half_of_four(_: Any, address: Any, lane: Any) -> Any:
    """Number `lane` of the four float16 at `address`, as float32.

    Four are converted where one is asked for: x86 loads a lone half into a register that keeps its other lanes, and so
    waits for whatever was there.
    """

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        halves = _load(builder, arguments[0], ir.VectorType(_HALF, 4))
        floats = builder.fpext(halves, ir.VectorType(_FLOAT, 4))
        return builder.extract_element(floats, builder.trunc(arguments[1], _INT))

    return types.float32(types.int64, types.int64), lower


@intrinsic
def six_bit_scales(_: Any, address: Any) -> Any:
    """Scales and minima of the block at `address` (Q4_K, Q5_K), of 8 sub-blocks: d s0..3, -m m0..3, d s4..7, -m m4..7.

    Two float16 (d, m) and 12 bytes: the low 6 bits of bytes 0..7 are s0..3 and m0..3, whose upper two are those of
    s4..7 and m4..7; the low bits of these are the nibbles of bytes 8..11.
    """

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def lanes(values: list[int]) -> Any:
            return ir.Constant(ir.VectorType(_INT, LANES), values)

        def each(first: int, second: int, third: int) -> Any:
            return ir.Constant(_BYTES, [first] * 8 + [second] * 4 + [third] * 4)

        stored = _load(builder, builder.add(arguments[0], ir.Constant(ir.IntType(64), 4)), _BYTES)
        low = builder.shuffle_vector(stored, stored, lanes([*range(12), *range(8, 12)]))
        high = builder.shuffle_vector(stored, stored, lanes([*range(8), *range(8)]))
        upper = builder.and_(builder.lshr(low, each(4, 4, 4)), each(0, 0, 15))
        low = builder.or_(builder.and_(low, each(63, 15, 0)), upper)
        codes = builder.or_(low, builder.and_(builder.lshr(high, each(2, 2, 2)), each(0, 48, 48)))
        halves = builder.fpext(_load(builder, arguments[0], ir.VectorType(_HALF, 4)), ir.VectorType(_FLOAT, 4))
        signs = ir.Constant(ir.VectorType(_FLOAT, 4), [1.0, -1.0, 1.0, -1.0])
        steps = builder.fmul(halves, signs)
        steps = builder.shuffle_vector(steps, steps, lanes([0] * 4 + [1] * 4 + [0] * 4 + [1] * 4))
        return builder.fmul(builder.uitofp(codes, _FLOATS), steps)

    return F32X16(types.int64), lower


def _lane(_: Any, values: Any, lane: Any) -> Any:
    if not isinstance(lane, types.IntegerLiteral):
        return None
    number = lane.literal_value

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        mask = ir.Constant(ir.VectorType(_INT, LANES), [number] * LANES)
        return builder.shuffle_vector(arguments[0], arguments[0], mask)

    return F32X16(F32X16, lane), lower


splat_lane: Any = numba_intrinsic(prefer_literal=True)(_lane)
"""`splat_lane(values, lane)`: sixteen times the number in a constant lane."""


@intrinsic
def centre(_: Any, values: Any) -> Any:
    """Bytes 0 to 63, less 32, as float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(builder.sub(arguments[0], ir.Constant(_BYTES, [32] * LANES)), _FLOATS)

    return F32X16(U8X16), lower


@intrinsic
def bfloat_at(_: Any, address: Any) -> Any:
    """The bfloat16 at `address`, as float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.zext(_load(builder, arguments[0], _SHORT), _INT)
        return builder.bitcast(builder.shl(bits, ir.Constant(_INT, 16)), _FLOAT)

    return types.float32(types.int64), lower


@intrinsic
def float_at(_: Any, address: Any) -> Any:
    """The float32 at `address`."""
    return types.float32(types.int64), lambda context, builder, signature, arguments: _load(
        builder, arguments[0], _FLOAT
    )


@intrinsic
def _float_pointer(_: Any, address: Any) -> Any:
    return types.CPointer(types.float32)(types.int64), lambda context, builder, signature, arguments: _pointer(
        builder, arguments[0], _FLOAT
    )


@register_jitable
def floats_at(address: int, count: int) -> Any:
    """The `count` float32 from `address` on as an array."""
    return carray(_float_pointer(address), count)


@intrinsic
def set_float(_: Any, address: Any, value: Any) -> Any:
    """Write a float32 to `address`."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], _pointer(builder, arguments[0], _FLOAT), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.float32), lower


@intrinsic
def byte_at(_: Any, address: Any) -> Any:
    """The byte at `address`."""
    return types.uint8(types.int64), lambda context, builder, signature, arguments: _load(builder, arguments[0], _BYTE)


@intrinsic
def power_of_two(_: Any, exponent: Any) -> Any:
    """2^exponent as float32, for int64 exponents from -126 to 127."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        biased = builder.add(builder.trunc(arguments[0], _INT), ir.Constant(_INT, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INT, 23)), _FLOAT)

    return types.float32(types.int64), lower


@intrinsic
def float_bits(_: Any, value: Any) -> Any:
    """The bits of a float32 as uint32."""
    return types.uint32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], _INT
    )


@intrinsic
def as_float(_: Any, bits: Any) -> Any:
    """The float32 of uint32 bits."""
    return types.float32(types.uint32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], _FLOAT
    )


@jit
def decay(x: Any) -> Any:
    """e^x for float32 x <= 0 to 2 units in the last place; 0 below -87.

    As 2^n e^r with |r| <= ln 2 / 2 and the Taylor polynomial of e^r, of which loops make vectors; there is no vector
    form of the mathematical library's function.
    """
    x = max(x, np.float32(-87.0))
    n = np.int32(x * np.float32(1.442695041) - np.float32(0.5))
    r = x - np.float32(n) * np.float32(0.693359375) - np.float32(n) * np.float32(-2.12194440e-4)
    p = np.float32(1 / 5040)
    for coefficient in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        p = p * r + np.float32(coefficient)
    return p * power_of_two(n)
