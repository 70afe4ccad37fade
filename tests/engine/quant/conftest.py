"""Random GGUF blocks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.quant.gguf_blocks import BLOCK_TYPES

# Byte offsets of float16 fields, so that random blocks hold finite scales.
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def make_rows(name: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Rows of valid random blocks: any bytes, but finite scales."""
    kind, rng = BLOCK_TYPES[name], np.random.default_rng(seed)
    if name in ("F32", "F16"):
        values = rng.normal(size=(rows, blocks * 32)).astype(np.float32 if name == "F32" else np.float16)
        return values.view(np.uint8)
    if name == "BF16":
        return torch.from_numpy(rng.normal(size=(rows, blocks * 32))).bfloat16().view(torch.uint8).numpy()
    raw = rng.integers(0, 256, size=(rows, blocks, kind.bytes), dtype=np.uint8)
    for start in SCALES[name]:
        raw[:, :, start : start + 2] = rng.normal(size=(rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.fixture(scope="session")
def random_rows() -> Callable[..., np.ndarray]:
    return make_rows
