"""Launch parameters per kernel, matrix and number of tokens: measured ones where there are any, else a rule.

`benchmarks/autotune.py` writes one file per device into `tables/`.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from engine.kernels.block_words import WORDS

Launch = Mapping[str, int]
"""Tile sizes by the name of the kernel's argument, `num_warps` and `num_stages`."""

FOLDER = Path(__file__).parent / "tables"

DEFAULTS: Mapping[str, Launch] = MappingProxyType(
    {
        "row_linear": {"BN": 8, "num_warps": 4, "num_stages": 1},
        "linear": {"BN": 32, "num_warps": 4, "num_stages": 4},
        "row_gate_up": {"BN": 4, "num_warps": 4, "num_stages": 1},
        "row_down": {"BN": 4, "CHOICES": 4, "num_warps": 4, "num_stages": 1},
        "gate_up": {"BN": 32, "num_warps": 4, "num_stages": 4},
        "down": {"BN": 64, "num_warps": 4, "num_stages": 4},
        "many_gate_up": {"BM": 64, "BN": 128, "num_warps": 8, "num_stages": 3},
        "many_down": {"BM": 64, "BN": 128, "num_warps": 8, "num_stages": 3},
        "fp8_gate_up": {"BM": 64, "num_warps": 8, "num_stages": 3},
        "fp8_down": {"BM": 64, "BN": 128, "num_warps": 4, "num_stages": 3},
    }
)

BLOCK_DEFAULTS: Mapping[str, Launch] = MappingProxyType(
    {
        "linear": {"BN": 64, "num_warps": 4, "num_stages": 3},
        "gate_up": {"BN": 64, "num_warps": 4, "num_stages": 3},
        "down": {"BN": 64, "num_warps": 4, "num_stages": 3},
    }
)
"""Of GGUF block types: 16 rows for each warp, so that none unpacks what another does too."""


def choose(kernel: str, matrix: str, tokens: int) -> Launch:
    """The parameters measured for the least number of tokens that is at least `tokens`, else the default."""
    measured = _table().get(kernel, {}).get(matrix, {})
    fitting = [int(count) for count in measured if int(count) >= tokens]
    if fitting:
        return measured[str(min(fitting))]
    blocks = matrix.split()[0].split("/")[0] in WORDS
    return BLOCK_DEFAULTS.get(kernel, DEFAULTS[kernel]) if blocks else DEFAULTS[kernel]


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Launch]]]:
    """kernel -> matrix -> tokens -> parameters, of this process's device."""
    if not torch.cuda.is_available():
        return {}
    file = FOLDER / f"{torch.cuda.get_device_name().replace(' ', '_')}.json"
    loaded: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return loaded
