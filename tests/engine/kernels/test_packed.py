"""Products with packed rows against float64 products with the `gguf` package's own dequantization."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from engine.kernels.cpu.packed import KINDS, MANY, ROW_BLOCK, expand, matmul

FORMATS = {gguf.GGMLQuantizationType(kind).name: kind for kind in sorted(KINDS)}
HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Byte offsets of the float16 fields of blocks that the `gguf` package reads but does not write."""


def random_rows(name: str, rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[name]
    if name not in HALVES:
        return quantize(rng.normal(size=(rows, columns)).astype(np.float32), kind).view(np.uint8).reshape(rows, -1)
    width, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(rows, columns // width, size), dtype=np.uint8)
    for at in HALVES[name]:
        blocks[:, :, at : at + 2] = rng.normal(size=(*blocks.shape[:2], 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_expand_exactly(name: str) -> None:
    rows = random_rows(name, 3, 512)
    expected = dequantize(rows, gguf.GGMLQuantizationType[name])
    assert np.array_equal(expand(torch.from_numpy(rows), FORMATS[name], 512).numpy(), expected.reshape(3, 512))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("columns", [256, 1536])
def test_products(name: str, columns: int) -> None:
    """Few tokens and many, with rows and tokens left over, on memory that holds NaN; no output is left unwritten."""
    rows = random_rows(name, 2 * ROW_BLOCK + 7, columns)
    weight = torch.from_numpy(dequantize(rows, gguf.GGMLQuantizationType[name]).reshape(len(rows), columns)).double()
    for tokens in (1, 2, 4, 7, MANY - 1, MANY, MANY + 2):
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
        expected = x.double() @ weight.t()
        torch.full(expected.shape, float("nan"))  # freed at once: likely the memory of the result
        got = matmul(x, torch.from_numpy(rows), FORMATS[name])
        assert (got.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_one_thread_gives_what_many_give() -> None:
    rows, x = torch.from_numpy(random_rows("Q4_1", 77, 256)), torch.randn(5, 256)
    many, threads = matmul(x, rows, FORMATS["Q4_1"]), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(matmul(x, rows, FORMATS["Q4_1"]), many)
    finally:
        torch.set_num_threads(threads)
