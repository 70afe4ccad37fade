"""Products of activations with tiles of packed weights: what every matrix kernel is made of.

Weights stay as they lie in memory (`engine.quant.formats.Packed`) until they are in registers. Codes of every format are
exact in bfloat16 and enter the product so (or in the activations' dtype, if that is another: Triton's interpreter has no
bfloat16 products); scales multiply float32 sums. Sums run over the columns in fixed steps, so a
token's result does not depend on the other tokens of a tile.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SCALE_BLOCK = tl.constexpr(128)
"""Rows and columns of the blocks that share an FP8 scale."""


@triton.jit
def await_inputs(EARLY: tl.constexpr):
    """Wait until what the kernels before this one have written is there, then let the next kernel start.

    In this order, whoever starts early knows that all but the kernel just before it have ended: what those wrote, and
    weights, can be read before the wait, everything else after it, and nothing is written before it.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch(w, cols, K: tl.constexpr, FORMAT: tl.constexpr, BYTES: tl.constexpr):
    """Ask for the first `BYTES` bytes of rows `cols` of W [N, K] to be brought to the L2 cache.

    `w` is a pointer, or one for each of `cols`.
    """
    ROW: tl.constexpr = K // 2 if FORMAT == "int4" else K
    LINE: tl.constexpr = 1024 // w.dtype.element_ty.primitive_bitwidth  # elements of a cache line of 128 bytes
    lines = (w + cols * ROW)[:, None] + (tl.arange(0, BYTES // 128) * LINE)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines.to(tl.int64)], tl.int32, False, 1
    )


@triton.jit
def centred(codes, DTYPE: tl.constexpr):
    """4-bit codes less 8, for bfloat16 without a conversion: 0x4300 | c is the bfloat16 number 128 + c."""
    if DTYPE == tl.bfloat16:
        return (codes.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    return codes.to(DTYPE) - 8.0


E4M3_TO_BFLOAT16 = tl.constexpr(
    """{
    .reg .b32 pair, low, power;
    mov.b32 power, 0x7b807b80;
    prmt.b32 pair, $2, 0, 0x1404;
    shr.u32 low, pair, 4;
    and.b32 pair, pair, 0x80008000;
    lop3.b32 pair, low, 0x07f007f0, pair, 0xea;
    mul.rn.bf16x2 $0, pair, power;
    prmt.b32 pair, $2, 0, 0x3424;
    shr.u32 low, pair, 4;
    and.b32 pair, pair, 0x80008000;
    lop3.b32 pair, low, 0x07f007f0, pair, 0xea;
    mul.rn.bf16x2 $1, pair, power;
    }"""
)
"""Four e4m3 codes to bfloat16, exactly: sign, exponent and mantissa put where bfloat16 has them, times 2^120.

The conversion that Triton would emit ends in one instruction for each weight that Hopper runs at 16 a clock: of itself
as slow as reading the weights.
"""


@triton.jit
def widened(codes, DTYPE: tl.constexpr):
    """Codes in the activations' dtype."""
    if codes.dtype == tl.float8e4nv and DTYPE == tl.bfloat16:
        bits = codes.to(tl.uint8, bitcast=True)
        return tl.inline_asm_elementwise(E4M3_TO_BFLOAT16, "=r,=r,r", [bits], tl.bfloat16, True, 4)
    return codes.to(DTYPE)


@triton.jit
def product(
    x, rows, w, s, cols, N, K: tl.constexpr, FORMAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Float32 [BM, BN]: rows `rows` int64 [BM] of x bfloat16 [., K] times rows `cols` [BN] of W [N, K].

    `BK` columns a step, which have one scale: 128 for FP8, the group for int4.
    """
    acc = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(0, K, BK):
        activations = tl.load(x + rows[:, None] * K + (k + tl.arange(0, BK))[None, :])
        if FORMAT == "int4":
            acc += _int4_product(activations, w, s, cols, N, K, k, BM, BK)
        else:
            weights = tl.load(w + cols[None, :] * K + (k + tl.arange(0, BK))[:, None])
            part = tl.dot(activations, widened(weights, activations.dtype))
            if FORMAT == "fp8":
                scale = tl.load(s + cols // SCALE_BLOCK * (K // SCALE_BLOCK) + k // SCALE_BLOCK)
                part *= scale[None, :]
            acc += part
    if FORMAT == "int8":
        acc *= tl.load(s + cols).to(tl.float32)[None, :]
    return acc


@triton.jit
def _int4_product(activations, w, s, cols, N, K: tl.constexpr, k, BM: tl.constexpr, BK: tl.constexpr):
    """One group: even columns are low nibbles and odd ones high nibbles, each half a product of its own."""
    bytes_ = tl.load(w + cols[None, :] * (K // 2) + (k // 2 + tl.arange(0, BK // 2))[:, None])
    even, odd = tl.split(tl.reshape(activations, (BM, BK // 2, 2)))
    part = tl.dot(even, centred(bytes_ & 15, even.dtype))
    part = tl.dot(odd, centred(bytes_ >> 4, even.dtype), part)
    pair = s + (k // BK * N + cols) * 2
    total = tl.sum(activations.to(tl.float32), 1)
    return part * tl.load(pair).to(tl.float32)[None, :] + total[:, None] * tl.load(pair + 1).to(tl.float32)[None, :]


@triton.jit
def row_product(
    x,
    w,
    s,
    cols,
    N,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Float32 [BN]: one row bfloat16 [K] at `x` times rows `cols` [BN] of W [N, K], `BK` columns at a time.

    `cols` lie within one block of 128 rows. Without the matrix units: for a single token their tiles would be idle but
    for one row, and what counts is how many bytes are asked for at once. With `EARLY` the first are asked for before the
    kernel before this one, which makes x, has ended.
    """
    acc = tl.zeros((BN,), tl.float32)
    for k in tl.static_range(0, K, BK):
        if FORMAT == "int4":
            acc += _int4_row_product(x, w, s, cols, N, K, k, GROUP, BN, BK, EARLY if k == 0 else False)
        else:
            at = k + tl.arange(0, BK)
            weights = tl.load(w + cols[:, None] * K + at[None, :])
            scale = 1.0
            if FORMAT == "fp8":
                scale = tl.load(s + tl.min(cols, 0) // SCALE_BLOCK * (K // SCALE_BLOCK) + at // SCALE_BLOCK)
            if k == 0:
                await_inputs(EARLY)
            activations = tl.load(x + at).to(tl.float32) * scale
            acc += tl.sum(weights.to(tl.float32) * activations[None, :], 1)
    if FORMAT == "int8":
        acc *= tl.load(s + cols).to(tl.float32)
    return acc


@triton.jit
def _int4_row_product(
    x,
    w,
    s,
    cols,
    N,
    K: tl.constexpr,
    k,
    GROUP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EARLY: tl.constexpr,
):
    GROUPS: tl.constexpr = BK // GROUP
    at = k // 2 + tl.arange(0, BK // 2)
    bytes_ = tl.load(w + cols[:, None] * (K // 2) + at[None, :])
    pair = s + ((k // GROUP + tl.arange(0, GROUPS))[None, :] * N + cols[:, None]) * 2
    scale, zero = tl.load(pair).to(tl.float32), tl.load(pair + 1).to(tl.float32)
    await_inputs(EARLY)
    even, odd = tl.load(x + 2 * at).to(tl.float32), tl.load(x + 2 * at + 1).to(tl.float32)
    DTYPE: tl.constexpr = x.dtype.element_ty
    low, high = centred(bytes_ & 15, DTYPE).to(tl.float32), centred(bytes_ >> 4, DTYPE).to(tl.float32)
    terms = tl.reshape(low * even[None, :] + high * odd[None, :], (BN, GROUPS, GROUP // 2))
    totals = tl.sum(tl.reshape(even + odd, (GROUPS, GROUP // 2)), 1)
    return tl.sum(tl.sum(terms, 2) * scale + totals[None, :] * zero, 1)
