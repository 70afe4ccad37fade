"""Products of activations with tiles of packed weights: what every matrix kernel is made of.

Weights stay as they lie in memory (`engine.quant.formats.Packed`) until they are in registers. Codes of every format
are exact in bfloat16 and enter the product so (or in the activations' dtype, if that is another: Triton's interpreter
has no bfloat16 products); scales multiply float32 sums. Sums run over the columns in fixed steps, so a token's result
does not depend on the other tokens of a tile.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from engine.kernels.triton_matrix.blocks import is_block_type, row_words, tile_product

SCALE_BLOCK = tl.constexpr(128)
"""Rows and columns of the blocks that share an FP8 scale."""

RUN = tl.constexpr(16)
"""FP8 codes that a thread loads at once."""


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
    """Ask for the first `BYTES` bytes of rows `cols` of W [N, K] (a power of two) to be brought to the L2 cache.

    `w` is a pointer, or one for each of `cols`.
    """
    ROW: tl.constexpr = row_words(FORMAT, K) if is_block_type(FORMAT) else K // 2 if FORMAT == "int4" else K
    LINES: tl.constexpr = max(BYTES // 128 & -(BYTES // 128), 1)
    LINE: tl.constexpr = 1024 // w.dtype.element_ty.primitive_bitwidth  # elements of a cache line of 128 bytes
    lines = (w + cols * ROW)[:, None] + (tl.arange(0, LINES) * LINE)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines.to(tl.int64)], tl.int32, False, 1
    )


NIBBLES_TO_BFLOAT16 = tl.constexpr(
    """{
    .reg .b32 pair, bias;
    mov.b32 bias, 0x43084308;
    prmt.b32 pair, $4, 0, 0x4140;
    lop3.b32 $0, pair, 0x000f000f, 0x43004300, 0xea;
    shr.u32 pair, pair, 4;
    lop3.b32 $2, pair, 0x000f000f, 0x43004300, 0xea;
    prmt.b32 pair, $4, 0, 0x4342;
    lop3.b32 $1, pair, 0x000f000f, 0x43004300, 0xea;
    shr.u32 pair, pair, 4;
    lop3.b32 $3, pair, 0x000f000f, 0x43004300, 0xea;
    sub.rn.bf16x2 $0, $0, bias;
    sub.rn.bf16x2 $1, $1, bias;
    sub.rn.bf16x2 $2, $2, bias;
    sub.rn.bf16x2 $3, $3, bias;
    }"""
)
"""The low and the high codes of four bytes, less 8, in bfloat16: 0x4300 | c is the number 128 + c; 0x4308 is 136."""


@triton.jit
def nibbles(bytes_, DTYPE: tl.constexpr):
    """Low and high 4-bit codes less 8, in the activations' dtype."""
    if tl.bfloat16 == DTYPE:
        return tl.inline_asm_elementwise(
            NIBBLES_TO_BFLOAT16, "=&r,=&r,=&r,=&r,r", [bytes_], (tl.bfloat16, tl.bfloat16), True, 4
        )
    return (bytes_ & 15).to(DTYPE) - 8.0, (bytes_ >> 4).to(DTYPE) - 8.0


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
    if codes.dtype == tl.float8e4nv and tl.bfloat16 == DTYPE:
        bits = codes.to(tl.uint8, bitcast=True)
        return tl.inline_asm_elementwise(E4M3_TO_BFLOAT16, "=r,=r,r", [bits], tl.bfloat16, True, 4)
    return codes.to(DTYPE)


@triton.jit
def product(
    x,
    rows,
    exist,
    w,
    s,
    cols,
    N,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    first=0,
    COLUMNS: tl.constexpr = 0,
):
    """Float32 [BM, BN]: rows `rows` int64 [BM] of x bfloat16 [., K] times rows `cols` [BN] of W [N, K].

    Zeros where a row does not `exist` [BM]. `BK` columns a step, which have one scale: 128 for FP8, the group for int4.
    Of the columns, `COLUMNS` from `first` on, or all.
    """
    if is_block_type(FORMAT):
        acc = tile_product(x, rows, exist, w, cols, K, FORMAT, BM, BN, first, COLUMNS if COLUMNS else K)
    else:
        acc = tl.zeros((BM, BN), tl.float32)
        for step in tl.range(0, COLUMNS if COLUMNS else K, BK):
            k = first + step
            if FORMAT == "int4":
                acc += _int4_product(x, rows, exist, w, s, cols, N, K, k, BK)
            else:
                at = rows[:, None] * K + (k + tl.arange(0, BK))[None, :]
                activations = tl.load(x + at, mask=exist[:, None], other=0.0)
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
def _int4_product(x, rows, exist, w, s, cols, N, K: tl.constexpr, k, BK: tl.constexpr):
    """One group: its first columns are low nibbles and the others high nibbles, each half a product of its own."""
    lanes = tl.arange(0, BK // 2)
    at = rows[:, None] * K + (k + lanes)[None, :]
    first = tl.load(x + at, mask=exist[:, None], other=0.0)
    second = tl.load(x + at + BK // 2, mask=exist[:, None], other=0.0)
    bytes_ = tl.load(w + cols[None, :] * (K // 2) + (k // 2 + lanes)[:, None])
    low, high = nibbles(bytes_, first.dtype)
    part = tl.dot(second, high, tl.dot(first, low))
    pair = s + (k // BK * N + cols) * 2
    total = tl.sum(first.to(tl.float32) + second.to(tl.float32), 1)
    return part * tl.load(pair).to(tl.float32)[None, :] + total[:, None] * tl.load(pair + 1).to(tl.float32)[None, :]


@triton.jit
def load_rows(w, s, cols, N, K: tl.constexpr, k, FORMAT: tl.constexpr, GROUP: tl.constexpr, BK: tl.constexpr):
    """Columns k to k + BK of rows `cols` [BN] of W [N, K], as they lie, and their scales and zeros, for `row_terms`.

    `cols` lie within one block of 128 rows.
    """
    if FORMAT == "int4":
        at = k // 2 + tl.arange(0, BK // 2)
        weights = tl.load(w + cols[:, None] * (K // 2) + at[None, :])
        pair = s + ((k // GROUP + tl.arange(0, BK // GROUP))[None, :] * N + cols[:, None]) * 2
        scale, zero = tl.load(pair).to(tl.float32), tl.load(pair + 1).to(tl.float32)
    else:
        weights = tl.load(w + cols[:, None] * K + (k + tl.arange(0, BK))[None, :])
        zero = 0.0
        if FORMAT == "fp8":
            runs = (k + tl.arange(0, BK // RUN) * RUN) // SCALE_BLOCK
            scale = tl.load(s + tl.min(cols, 0) // SCALE_BLOCK * (K // SCALE_BLOCK) + runs)
        elif FORMAT == "int8":
            scale = tl.load(s + cols).to(tl.float32)
        else:
            scale = 1.0
    return weights, scale, zero


@triton.jit
def row_terms(x, weights, scale, zero, FORMAT: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Float32 [BN]: x [BK] times rows of `load_rows`.

    Without the matrix units: for a single token their tiles would be idle but for one row, and what counts is how many
    bytes are asked for at once. A thread has whole runs of FP8 codes, so that a scale is applied once a run.
    """
    activations = x.to(tl.float32)
    if FORMAT == "int4":
        GROUPS: tl.constexpr = BK // GROUP
        first, second = tl.split(tl.permute(tl.reshape(activations, (GROUPS, 2, GROUP // 2)), (0, 2, 1)))
        low, high = nibbles(weights, x.dtype)
        terms = low.to(tl.float32) * tl.reshape(first, (BK // 2,))[None, :]
        terms += high.to(tl.float32) * tl.reshape(second, (BK // 2,))[None, :]
        totals = tl.sum(first + second, 1)
        sums = tl.sum(tl.sum(tl.reshape(terms, (BN, GROUPS, GROUP // 2)), 2) * scale + totals[None, :] * zero, 1)
    else:
        terms = weights.to(tl.float32) * activations[None, :]
        if FORMAT == "fp8":
            sums = tl.sum(tl.sum(tl.reshape(terms, (BN, BK // RUN, RUN)), 2) * scale[None, :], 1)
        else:
            sums = tl.sum(terms, 1) * scale
    return sums
