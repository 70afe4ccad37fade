"""One row each of several matrices at once: what a token's choices of experts need of memory, asked for together."""

import triton
import triton.language as tl

from engine.kernels.triton_matrix.blocks import is_block_type, row_products, row_words
from engine.kernels.triton_matrix.tiles import RUN, SCALE_BLOCK, nibbles


@triton.jit
def choice_products(
    x, w, s, exist, cols, N, K: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    CHOICES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Float32 [CHOICES, BN]: rows bfloat16 [K] at pointers `x`, each times rows `cols` [BN] of its own W [N, K] at `w`.

    One after another, each matrix would have the memory's whole latency to itself. Nothing is loaded for choices that
    do not `exist` [CHOICES], whose results are zeros. `cols` lie within one block of 128 rows.
    """
    acc = tl.zeros((CHOICES, BN), tl.float32)
    here = exist[:, None, None]
    if is_block_type(FORMAT):
        matrices, rows = w[:, None, None, None], (cols * row_words(FORMAT, K))[None, :, None, None]
        there = here[:, :, :, None]
        for k in tl.static_range(0, K, BK):
            acc += row_products(x[:, None, None, None], there, matrices + rows, there, k, K, FORMAT, BK)
    else:
        for k in tl.static_range(0, K, BK):
            at = k + tl.arange(0, BK)
            activations = tl.load(x[:, None] + at[None, :], mask=exist[:, None], other=0.0)
            if FORMAT == "int4":
                GROUPS: tl.constexpr = BK // GROUP
                half = k // 2 + tl.arange(0, BK // 2)
                codes = tl.load(
                    w[:, None, None] + (cols[:, None] * (K // 2) + half[None, :])[None, :, :], mask=here, other=0
                )
                groups = k // GROUP + tl.arange(0, GROUPS)
                pair = s[:, None, None] + ((groups[None, :] * N + cols[:, None]) * 2)[None, :, :]
                scale = tl.load(pair, mask=here, other=0.0).to(tl.float32)
                zero = tl.load(pair + 1, mask=here, other=0.0).to(tl.float32)
                halves = tl.reshape(activations.to(tl.float32), (CHOICES, GROUPS, 2, GROUP // 2))
                early, late = tl.split(tl.permute(halves, (0, 1, 3, 2)))
                low, high = nibbles(codes, activations.dtype)
                terms = low.to(tl.float32) * tl.reshape(early, (CHOICES, BK // 2))[:, None, :]
                terms += high.to(tl.float32) * tl.reshape(late, (CHOICES, BK // 2))[:, None, :]
                totals = tl.sum(early + late, 2)
                sums = tl.sum(tl.reshape(terms, (CHOICES, BN, GROUPS, GROUP // 2)), 3)
                acc += tl.sum(sums * scale + totals[:, None, :] * zero, 2)
            else:
                weights = tl.load(
                    w[:, None, None] + (cols[:, None] * K + at[None, :])[None, :, :], mask=here, other=0.0
                )
                terms = weights.to(tl.float32) * activations.to(tl.float32)[:, None, :]
                if FORMAT == "fp8":
                    runs = (k + tl.arange(0, BK // RUN) * RUN) // SCALE_BLOCK
                    block = tl.min(cols, 0) // SCALE_BLOCK * (K // SCALE_BLOCK)
                    scale = tl.load(s[:, None] + block + runs[None, :], mask=exist[:, None], other=0.0)
                    sums = tl.sum(tl.reshape(terms, (CHOICES, BN, BK // RUN, RUN)), 3)
                    acc += tl.sum(sums * scale[:, None, :], 2)
                else:
                    acc += tl.sum(terms, 2)
    if FORMAT == "int8":
        acc *= tl.load(s[:, None] + cols[None, :], mask=exist[:, None], other=0.0).to(tl.float32)
    return acc
