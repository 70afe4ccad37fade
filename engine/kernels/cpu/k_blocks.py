"""Products with Q4_K, Q5_K and Q6_K 256 weights at a time: a block's scales are taken apart once, all together.

Weights are exactly those of `engine.kernels.cpu.unpack`, which reads 32 at a time and looks for their scales anew.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from engine.kernels.cpu.compiler import jit
from engine.kernels.cpu.simd import (
    add,
    centre,
    fma,
    half_of_four,
    load,
    load_bytes,
    load_signed,
    merge_bits,
    multiply,
    shift_mask,
    six_bit_scales,
    splat,
    splat_lane,
    to_floats,
    total,
    zeros,
)
from engine.kernels.cpu.unpack import Q4_K, Q5_K, Q6_K

BLOCK_BYTES = {Q4_K: 144, Q5_K: 176, Q6_K: 210}
UNITS = 8
"""Units of 32 weights in a block."""


@cache
def block_dot(kind: int) -> Callable[[int, int, int], float]:
    """The product of the row at an address, so many blocks long, and the float32 vector at another, for one format."""
    size = BLOCK_BYTES[kind]
    scales, part = (_q6_scales, _q6_part) if kind == Q6_K else (six_bit_scales, _nibble_part(kind))
    p0, p1, p2, p3, p4, p5, p6, p7 = (part(unit) for unit in range(UNITS))

    @jit
    def dot_blocks(at: int, x: int, blocks: int) -> Any:
        a, b, c, d = zeros(), zeros(), zeros(), zeros()
        for _ in range(blocks):
            steps = scales(at)
            a, b = p0(at, steps, x, a, b)
            c, d = p1(at, steps, x + 128, c, d)
            a, b = p2(at, steps, x + 256, a, b)
            c, d = p3(at, steps, x + 384, c, d)
            a, b = p4(at, steps, x + 512, a, b)
            c, d = p5(at, steps, x + 640, c, d)
            a, b = p6(at, steps, x + 768, a, b)
            c, d = p7(at, steps, x + 896, c, d)
            at, x = at + size, x + 1024
        return total(add(add(a, b), add(c, d)))

    return dot_blocks


def _nibble_part(kind: int) -> Callable[[int], Any]:
    """For a unit, what adds its 32 products to two vectors of sums; Q5_K has fifth bits in bytes of their own."""

    def of(unit: int) -> Any:
        step_lane, least_lane = (unit, unit + 4) if unit < 4 else (unit + 4, unit + 8)
        codes, shift = (48 if kind == Q5_K else 16) + 32 * (unit // 2), 4 * (unit % 2)

        @jit
        def nibbles(at: int, steps: Any, x: int, a: Any, b: Any) -> Any:
            step, least = splat_lane(steps, step_lane), splat_lane(steps, least_lane)
            one, two = shift_mask(load_bytes(at + codes), shift, 15), shift_mask(load_bytes(at + codes + 16), shift, 15)
            first, second = fma(to_floats(one), step, least), fma(to_floats(two), step, least)
            return fma(first, load(x), a), fma(second, load(x + 64), b)

        @jit
        def five_bits(at: int, steps: Any, x: int, a: Any, b: Any) -> Any:
            step, least = splat_lane(steps, step_lane), splat_lane(steps, least_lane)
            one, two = shift_mask(load_bytes(at + codes), shift, 15), shift_mask(load_bytes(at + codes + 16), shift, 15)
            one = merge_bits(one, shift_mask(load_bytes(at + 16), unit, 1), 4)
            two = merge_bits(two, shift_mask(load_bytes(at + 32), unit, 1), 4)
            first, second = fma(to_floats(one), step, least), fma(to_floats(two), step, least)
            return fma(first, load(x), a), fma(second, load(x + 64), b)

        return five_bits if kind == Q5_K else nibbles

    return of


@jit
def _q6_scales(at: int) -> Any:
    return multiply(load_signed(at + 192), splat(half_of_four(at + 202, 3)))


def _q6_part(unit: int) -> Any:
    """As `_nibble_part`: four bits of each code in the first 128 bytes, two more in the next 64."""
    half, quarter = unit // 4, unit % 4
    low, shift, high, place = 64 * half + 32 * (quarter % 2), 4 * (quarter // 2), 128 + 32 * half, 2 * quarter
    lane, other = 2 * unit, 2 * unit + 1

    @jit
    def six_bits(at: int, steps: Any, x: int, a: Any, b: Any) -> Any:
        one, two = shift_mask(load_bytes(at + low), shift, 15), shift_mask(load_bytes(at + low + 16), shift, 15)
        one = merge_bits(one, shift_mask(load_bytes(at + high), place, 3), 4)
        two = merge_bits(two, shift_mask(load_bytes(at + high + 16), place, 3), 4)
        first, second = multiply(centre(one), splat_lane(steps, lane)), multiply(centre(two), splat_lane(steps, other))
        return fma(first, load(x), a), fma(second, load(x + 64), b)

    return six_bits
