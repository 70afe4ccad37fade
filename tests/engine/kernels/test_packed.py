"""Products with packed rows against float64 products with the `gguf` package's own dequantization."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from engine.kernels.cpu.experts import _dense, _experts
from engine.kernels.cpu.packed import MANY, ROW_BLOCK, _expansion, _products, expand, join, matmul, matrix
from engine.kernels.cpu.unpack import FP8, INT2, INT3, INT4, INT8, KINDS
from engine.quant.formats import Packed, pack
from engine.quant.formats import dequantize as dequantize_packed
from engine.quant.own import own_matrix

FORMATS = {gguf.GGMLQuantizationType(kind).name: kind for kind in sorted(KINDS - {INT8, INT4, INT3, INT2, FP8})}
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
    assert np.array_equal(expand(matrix(torch.from_numpy(rows)), FORMATS[name], 512).numpy(), expected.reshape(3, 512))


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
        (got,) = matmul(x, matrix(torch.from_numpy(rows)), FORMATS[name])
        assert (got.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("format", ["int8", "int4", "int3", "int2", "fp8"])
@pytest.mark.parametrize("columns", [96, 192, 256])
def test_several_matrices_with_scales_apart(format: str, columns: int) -> None:
    weights = [torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) for rows in (5, 130)]
    packed = [pack(weight, format) for weight in weights]
    own = [own_matrix(one) for one in packed]
    kind = {"int8": INT8, "int4": INT4, "int3": INT3, "int2": INT2, "fp8": FP8}[format]
    for tokens in (1, 4, MANY):
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
        results = matmul(x, join(tuple(one[1] for one in own if one)), kind)
        for got, one in zip(results, packed, strict=True):
            expected = x.double() @ dequantize_packed(one).double().t()
            assert (got.double() - expected).abs().max() <= 1e-6 * expected.abs().max()
    for one, whole in zip(own, packed, strict=True):
        assert one is not None
        assert one[0] == kind
        assert torch.equal(expand(one[1], kind, columns), dequantize_packed(whole))


def test_every_e4m3_number_is_read_exactly() -> None:
    codes = torch.tensor([byte for byte in range(256) if byte & 127 != 127] + [0, 0], dtype=torch.uint8)
    packed = Packed("fp8", (1, 256), {"weight": codes.view(1, -1).view(torch.float8_e4m3fn), "scale": torch.ones(1, 2)})
    own = own_matrix(packed)
    assert own is not None
    assert torch.equal(expand(own[1], FP8, 256), codes.view(torch.float8_e4m3fn).float().view(1, -1))


@pytest.mark.parametrize("tokens", [1, MANY])
def test_one_thread_gives_what_many_give(tokens: int) -> None:
    rows, x = matrix(torch.from_numpy(random_rows("Q4_1", 77, 256))), torch.randn(tokens, 256)
    (many,), threads = matmul(x, rows, FORMATS["Q4_1"]), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(matmul(x, rows, FORMATS["Q4_1"])[0], many)
    finally:
        torch.set_num_threads(threads)


def test_kernels_are_known_on_disk_by_their_formats_alone() -> None:
    """numba looks for machine code by what a kernel closes over, and a compiled function is another in each process."""
    kernels = [*_products(INT8), *_expansion(INT8), *_dense(INT8, INT4), *_experts(INT8, INT8, INT4)]
    held = [[cell.cell_contents for cell in kernel.py_func.__closure__] for kernel in kernels]
    assert all(cells and set(cells) <= {INT8, INT4} for cells in held)
