"""Products of activations with GGUF blocks in words (`engine.kernels.block_words`), packed until they are in registers.

`weights` gives the columns of one bit position, exactly as `engine.quant.gguf_blocks` does in float32. A product of one
or two rows is taken in float32 outside the matrix units; tiles round weights to the activations' dtype once, and have
them for the left operand: from there the matrix units take them out of registers, and 64 rows of them at a time however
few tokens there are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.block_words import WORDS

UNIT_WORDS = tl.constexpr(32)
"""Words of codes in a unit."""

UNITS = tl.constexpr({name: (words.columns, words.bytes, words.upper) for name, words in WORDS.items()})
"""Columns of a unit, its bytes, and those of its codes' upper bits. A constant, for caches of kernels to know."""


AT_ONCE = tl.constexpr(8)
OPERANDS = tl.constexpr(",".join(["=&r"] * 8 + ["r"] * 8))


@triton.constexpr_function
def is_block_type(format: str) -> bool:
    return format in UNITS.value


@triton.constexpr_function
def unit_columns(format: str) -> int:
    columns: int = UNITS.value[format][0]
    return columns


@triton.constexpr_function
def scale_items(format: str) -> int:
    """Pairs of bytes that a unit's scales are."""
    _, whole, upper = UNITS.value[format]
    items: int = (whole - 4 * UNIT_WORDS.value - upper) // 2
    return items


@triton.constexpr_function
def run_words(format: str) -> int:
    """Words of 32 columns: columns of one bit position that lie together."""
    words: int = 32 * UNIT_WORDS.value // UNITS.value[format][0]
    return words


@triton.constexpr_function
def upper_at(format: str, columns: int) -> int:
    """Words before a row's upper bits."""
    words: int = columns // UNITS.value[format][0] * UNIT_WORDS.value
    return words


@triton.constexpr_function
def scales_at(format: str, columns: int) -> int:
    """Words before a row's scales."""
    words: int = columns // UNITS.value[format][0] * (UNIT_WORDS.value + UNITS.value[format][2] // 4)
    return words


@triton.constexpr_function
def row_words(format: str, columns: int) -> int:
    """Words in a row."""
    size = columns // UNITS.value[format][0] * UNITS.value[format][1]
    words: int = (size + -size % 16) // 4
    return words


@triton.jit
def _load(at, there):
    return tl.load(at) if there is None else tl.load(at, mask=there, other=0)


@triton.jit
def _half(word, PLACE: tl.constexpr):
    """The low (0) or the high (1) float16 of a word, in float32."""
    return (word >> (16 * PLACE)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.constexpr_function
def is_interpreted() -> bool:
    interpreted: bool = triton.knobs.runtime.interpret
    return interpreted


@triton.constexpr_function
def mask_and_set(mask: int, bits: int) -> str:
    """The assembly of (word & mask) | bits in one instruction for each of `AT_ONCE` words.

    An instruction has room for one constant. The other is in a register, which the assembler would do without if it
    knew it: so it comes with a zero that is the upper bit of the grid's size.
    """
    zero = ".reg .b32 other; mov.u32 other, %nctaid.x; shr.u32 other, other, 31;"
    lines = [zero, f"or.b32 other, other, {bits};"]
    lines += [f"lop3.b32 ${i}, ${AT_ONCE.value + i}, {mask}, other, 0xea;" for i in range(AT_ONCE.value)]
    return "{ " + " ".join(lines) + " }"


@triton.jit
def _bits(word, AT: tl.constexpr, COUNT: tl.constexpr, LESS: tl.constexpr = 0):
    """Unsigned bits AT to AT + COUNT of a word, less LESS, in float32.

    Without a conversion, of which Hopper does few at a time: put into a float's mantissa, bit AT stands for 2^(AT - 23)
    of its power of two, and the power is chosen to make that 1.
    """
    if AT + COUNT > 23:
        word = word >> 16
    PLACE: tl.constexpr = AT if AT + COUNT <= 23 else AT - 16
    MASK: tl.constexpr = ((1 << COUNT) - 1) << PLACE
    POWER: tl.constexpr = (150 - PLACE) << 23
    if is_interpreted():
        bits = (word & MASK) | POWER
    else:
        bits = tl.inline_asm_elementwise(mask_and_set(MASK, POWER), OPERANDS, [word], tl.int32, True, AT_ONCE)
    return bits.to(tl.float32, bitcast=True) - (2.0 ** (23 - PLACE) + LESS)


@triton.jit
def _signed_byte(word, PLACE: tl.constexpr):
    return ((word << (24 - 8 * PLACE)) >> 24).to(tl.float32)


@triton.jit
def _joined_bits(codes, upper, P: tl.constexpr, COUNT: tl.constexpr, LESS: tl.constexpr):
    """Codes of 4 + COUNT bits at bit position P, less LESS, in float32: their upper bits put where the next code is."""
    AT: tl.constexpr = P % 4 * 4
    SHIFT: tl.constexpr = AT + 4 - COUNT * P
    lower = codes >> 16 if P >= 4 else codes
    above = upper << SHIFT if SHIFT >= 0 else upper >> -SHIFT
    joined = (lower & (15 << AT)) | (above & ~(15 << AT))
    return _bits(joined, AT, 4 + COUNT, LESS)


@triton.jit
def load_upper(rows, word, K: tl.constexpr, FORMAT: tl.constexpr, there=None):
    """The upper bits of the codes in words `word` of rows at `rows`, as words; 0 where the format has none."""
    upper = 0
    if FORMAT == "Q5_K":
        at = (rows + upper_at(FORMAT, K)).to(tl.pointer_type(tl.uint8), bitcast=True)
        upper = _load(at + word, there).to(tl.int32)
    elif FORMAT == "Q6_K":
        at = (rows + upper_at(FORMAT, K)).to(tl.pointer_type(tl.uint16), bitcast=True)
        upper = _load(at + word, there).to(tl.int32)
    return upper


@triton.jit
def load_scales(rows, run, K: tl.constexpr, FORMAT: tl.constexpr, there=None):
    """For `steps`: of the 32 columns from 32 · `run` on, their two bytes of scales, and d and dmin (or 0)."""
    RUNS: tl.constexpr = unit_columns(FORMAT) // 32
    at = (rows + scales_at(FORMAT, K)).to(tl.pointer_type(tl.int16), bitcast=True) + run // RUNS * scale_items(FORMAT)
    both = 0
    if scale_items(FORMAT) > RUNS:
        both = _load((at + RUNS).to(tl.pointer_type(tl.int32), bitcast=True), there)
    return _load(at + (run % (RUNS // 2) * 2 + run % RUNS // (RUNS // 2)), there).to(tl.int32), both


@triton.jit
def steps(item, both, FORMAT: tl.constexpr):
    """Float32 step and minimum, or of Q6_K the steps of the first and the last 16 columns, of 32."""
    if FORMAT == "Q8_0" or FORMAT == "Q4_0":
        first = _half(item, 0)
        second = first
    elif FORMAT == "Q6_K":
        first, second = _signed_byte(item, 0) * _half(both, 0), _signed_byte(item, 1) * _half(both, 0)
    else:
        first, second = _bits(item, 0, 8) * _half(both, 0), _bits(item, 8, 8) * _half(both, 1)
    return first, second


@triton.jit
def weights(codes, upper, first, second, P: tl.constexpr, FORMAT: tl.constexpr):
    """Float32: of each of the words `codes` the weight at bit position P, with what `steps` gives for them.

    No product here has more bits than float32 has, so that it does not matter whether it is fused with what follows.
    """
    if FORMAT == "Q8_0":
        values = _signed_byte(codes, P) * first
    elif FORMAT == "Q4_0":
        values = _bits(codes, 4 * P, 4, 8) * first
    elif FORMAT == "Q6_K":
        values = _joined_bits(codes, upper, P, 2, 32) * (first if P < 4 else second)
    elif FORMAT == "Q5_K":
        values = _joined_bits(codes, upper, P, 1, 0) * first - second
    else:
        values = _bits(codes, 4 * P, 4) * first - second
    return values


@triton.jit
def _load_positions(at, exist, W: tl.constexpr):
    """Activations for each bit position of words: as many as 32 columns have words."""
    first = _load_four(at, exist, W)
    return first if W == 8 else first + _load_four(at + 4 * W, exist, W)


@triton.jit
def _load_four(at, exist, W: tl.constexpr):
    return _load(at, exist), _load(at + W, exist), _load(at + 2 * W, exist), _load(at + 3 * W, exist)


@triton.jit
def row_products(x, exist, rows, there, k, K: tl.constexpr, FORMAT: tl.constexpr, BK: tl.constexpr):
    """Float32 [A, BN]: activations at pointers `x` [A, 1, 1, 1] times `rows` [A or 1, BN, 1, 1], columns k to k + BK.

    `exist` and `there` say which of them to read, the others being zeros; None is all.
    """
    W: tl.constexpr = run_words(FORMAT)
    run = k // 32 + tl.arange(0, BK // 32)[:, None]
    lanes = tl.arange(0, W)[None, :]
    # The last of these loads decides which thread has what, all the others being converted to it: the largest must.
    item, both = load_scales(rows, run, K, FORMAT, there)
    at = x + (run * 32 + lanes)
    activations = _load_positions(at, exist, W)
    upper = load_upper(rows, run * W + lanes, K, FORMAT, there)
    codes = _load(rows + (run * W + lanes), there)
    first, second = steps(item, both, FORMAT)
    terms = activations[0].to(tl.float32) * weights(codes, upper, first, second, 0, FORMAT)
    for P in tl.static_range(1, 32 // W):
        terms += activations[P].to(tl.float32) * weights(codes, upper, first, second, P, FORMAT)
    return tl.sum(tl.sum(terms, 3), 2)


@triton.jit
def tile_product(
    x, rows, exist, w, cols, K: tl.constexpr, FORMAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    first, COLUMNS: tl.constexpr,
):  # fmt: skip
    """See `tiles.product`, which this is for block types."""
    UNIT: tl.constexpr = unit_columns(FORMAT)
    W: tl.constexpr = run_words(FORMAT)
    HALF: tl.constexpr = UNIT_WORDS // 2
    lanes = tl.arange(0, HALF)
    row = w + cols[:, None] * row_words(FORMAT, K)
    acc = tl.zeros((BN, BM), tl.float32)
    for step in tl.range(0, COLUMNS, UNIT):
        k = first + step
        scales = row + (scales_at(FORMAT, K) + k // UNIT * (scale_items(FORMAT) // 2))
        items = tl.load(scales + (lanes // W)[None, :])
        both = 0
        if scale_items(FORMAT) > UNIT // 32:
            both = tl.load(scales + UNIT // 64)
        for H in tl.static_range(2):
            word = (k // UNIT * UNIT_WORDS + H * HALF + lanes)[None, :]
            codes = tl.load(row + word)
            upper = load_upper(row, word, K, FORMAT)
            one, other = steps(items >> (16 * H), both, FORMAT)
            for P in tl.static_range(32 // W):
                at = k + H * (UNIT // 2) + lanes // W * 32 + P * W + lanes % W
                activations = tl.load(x + rows[None, :] * K + at[:, None], mask=exist[None, :], other=0.0)
                part = weights(codes, upper, one, other, P, FORMAT)
                acc = tl.dot(part.to(activations.dtype), activations, acc)
    return tl.trans(acc)


def unpack(blocks: Tensor, format: str, dtype: torch.dtype) -> Tensor:
    """Rows in words uint8 [..., row_bytes] to weights [..., columns] in float32 or bfloat16, rounded once."""
    flat = blocks.contiguous().view(torch.int32).flatten(0, -2)
    columns = blocks.shape[-1] // WORDS[format].bytes * WORDS[format].columns
    values = torch.empty((flat.shape[0], columns), dtype=dtype, device=blocks.device)
    if len(flat):
        BN, RUNS = 4, 32
        grid = (triton.cdiv(flat.shape[0], BN), triton.cdiv(columns, 32 * RUNS))
        _unpack_kernel[grid](flat, values, flat.shape[0], columns, format, BN, RUNS, num_warps=4)
    return values.view(*blocks.shape[:-1], columns)


@triton.jit(do_not_specialize=["N"])
def _unpack_kernel(w, values, N, K: tl.constexpr, FORMAT: tl.constexpr, BN: tl.constexpr, RUNS: tl.constexpr):
    W: tl.constexpr = run_words(FORMAT)
    cols = (tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN))[:, None, None]
    run = (tl.program_id(1) * RUNS + tl.arange(0, RUNS))[:, None]
    lanes = tl.arange(0, W)[None, :]
    there = (cols < N) & (run < K // 32)
    rows = w + cols * row_words(FORMAT, K)
    codes = _load(rows + (run * W + lanes), there)
    upper = load_upper(rows, run * W + lanes, K, FORMAT, there)
    item, both = load_scales(rows, run, K, FORMAT, there)
    first, second = steps(item, both, FORMAT)
    for P in tl.static_range(32 // W):
        part = weights(codes, upper, first, second, P, FORMAT)
        tl.store(values + cols * K + (run * 32 + P * W + lanes), part, mask=there)
