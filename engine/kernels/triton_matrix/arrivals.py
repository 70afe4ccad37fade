"""Programs of one launch that finish each other's work: the last to arrive does what all were needed for."""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST_COUNTERS = 1 << 15


def zeroed_counters(device: torch.device, count: int) -> Tensor:
    """At least `count` counters int32, 0 before and after each launch: launches of a stream can share them."""
    return _counters(device, triton.next_power_of_2(max(LEAST_COUNTERS, count)))


@cache
def _counters(device: torch.device, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)


@triton.jit
def is_last(counter, count):
    """Whether `count - 1` programs have come by before; what they wrote and read until then is done."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1) == count - 1
    if last:
        tl.store(counter, 0)
    return last
