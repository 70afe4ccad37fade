"""Block types against the `gguf` package's own dequantization, bit for bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from engine.quant.gguf_blocks import BLOCK_TYPES, expand


@pytest.mark.parametrize("name", sorted(BLOCK_TYPES))
def test_expands_bit_exactly(name: str, random_rows: Callable[..., np.ndarray]) -> None:
    rows = random_rows(name, rows=7, blocks=5)
    expected = dequantize(rows, GGMLQuantizationType[name])
    torch.testing.assert_close(
        expand(torch.from_numpy(rows), BLOCK_TYPES[name]), torch.from_numpy(expected), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", sorted(BLOCK_TYPES))
def test_sizes_are_those_of_the_format(name: str) -> None:
    kind = BLOCK_TYPES[name]
    assert kind.number == GGMLQuantizationType[name]
    assert (kind.width, kind.bytes) == GGML_QUANT_SIZES[GGMLQuantizationType[name]]
