"""What the machine can do at best: the ceiling beside every measured speed."""

import time

import torch

BUFFER_BYTES = 1 << 28
"""Far beyond the last-level cache, so that a pass over it reads memory."""


def read_bandwidth(device: torch.device, passes: int = 5) -> float:
    """Bytes per second of the best of `passes` reductions over a 256 MiB buffer on `device`."""
    buffer = torch.ones(BUFFER_BYTES // 4, dtype=torch.float32, device=device)
    best = min(_seconds_of_sum(buffer) for _ in range(passes))
    return BUFFER_BYTES / best


def _seconds_of_sum(buffer: torch.Tensor) -> float:
    start = time.perf_counter()
    buffer.sum().item()
    return time.perf_counter() - start
