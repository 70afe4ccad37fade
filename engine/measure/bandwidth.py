"""What the machine can do at best: the ceiling beside every measured speed."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

BUFFER_BYTES = 1 << 28
"""Far beyond the last-level cache, so that a pass over it reads memory."""

COPY_BYTES: Mapping[str, int] = MappingProxyType({"cpu": 1 << 27, "cuda": 1 << 32})
PRODUCT_SIZE: Mapping[str, int] = MappingProxyType({"cpu": 512, "cuda": 8192})


def read_bandwidth(device: torch.device, passes: int = 5) -> float:
    """Bytes per second of the best of `passes` reductions over a 256 MiB buffer on `device`."""
    buffer = torch.ones(BUFFER_BYTES // 4, dtype=torch.float32, device=device)
    best = min(_seconds_of_sum(buffer) for _ in range(passes))
    return BUFFER_BYTES / best


def _seconds_of_sum(buffer: torch.Tensor) -> float:
    start = time.perf_counter()
    buffer.sum().item()
    return time.perf_counter() - start


def copy_bandwidth(device: torch.device, passes: int = 10) -> float:
    """Bytes read and written per second of the best of `passes` copies of `COPY_BYTES` on `device`."""
    source = torch.ones(COPY_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source), device) for _ in range(passes))


def product_rate(device: torch.device, passes: int = 10) -> float:
    """Operations per second of the best of `passes` square bfloat16 products of random numbers on `device`."""
    size = PRODUCT_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: left @ right, device) for _ in range(passes))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes, the device's part included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
