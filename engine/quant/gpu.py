"""Which packed matrices the GPU's own kernels multiply with, for which activations."""

import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from engine.quant.formats import Packed

logger = logging.getLogger(__name__)


@cache
def gpu_kernels(name: str) -> Any:
    """A module of `engine.kernels.triton_matrix`; None, said once, where Triton is not installed."""
    if find_spec("triton") is None:
        logger.warning("the package triton is not installed: portable torch serves instead of its %s kernels", name)
        return None
    return import_module(f"engine.kernels.triton_matrix.{name}")


def gpu_matrix(packed: Packed) -> Any:
    """The matrix as the kernels take it; None off the GPU or where they do not know its format or width."""
    if packed.device.type != "cuda":
        return None
    kernels = gpu_kernels("operands")
    return kernels and kernels.operands(packed)


def takes(x: Tensor) -> bool:
    """Whether activations [T, in] are few enough, and of the dtype, for the kernels."""
    return x.dtype == torch.bfloat16 and 0 < x.shape[0] <= gpu_kernels("linear").MOST_TOKENS
