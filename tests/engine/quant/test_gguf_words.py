"""The order in which a GPU has GGUF blocks: what comes back is what went in, in little more memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.kernels.block_words import WORDS
from engine.quant.gguf_blocks import BLOCK_TYPES
from engine.quant.gguf_words import device_order, file_order, in_words


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("columns", [512, 768, 2048])
def test_blocks_come_back_bit_for_bit(name: str, columns: int, random_rows: Callable[..., np.ndarray]) -> None:
    stored = torch.from_numpy(random_rows(name, 6, columns // BLOCK_TYPES[name].width)).reshape(2, 3, -1)
    words = device_order(stored, name)
    assert in_words(words, name)
    assert words.shape[-1] % 16 == 0
    assert words.nbytes <= 1.04 * stored.nbytes + 16 * 6
    assert torch.equal(file_order(words, name), stored)


@pytest.mark.parametrize(("name", "columns"), [("Q8_0", 96), ("Q4_0", 160), ("Q5_1", 256), ("Q2_K", 512)])
def test_what_no_kernel_takes_stays_as_in_the_file(
    name: str, columns: int, random_rows: Callable[..., np.ndarray]
) -> None:
    stored = torch.from_numpy(random_rows(name, 3, columns // BLOCK_TYPES[name].width))
    assert device_order(stored, name) is stored
    assert not in_words(stored, name)
    assert file_order(stored, name) is stored
