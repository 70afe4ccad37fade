"""The collectives of a forward pass over N ranks: sums of partial results, and the parts of the logits side by side.

NCCL carries them between GPUs and gloo between CPUs. Sums of few tokens on GPUs go one-shot through symmetric memory,
where every rank reads all others' parts by itself: a ring's steps take longer than these bytes. Multicast is off.
"""

import logging
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

__all__ = ["Group", "TCPStore", "vocabulary_part"]

logger = logging.getLogger(__name__)

ONE_SHOT_BYTES = 512 << 10
"""Bytes of a sum up to which one shot through symmetric memory is tried instead of NCCL's ring."""


class Group:
    """The ranks 0 to `size` - 1 of a model, seen by one of them; a group of one does nothing."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._one_shot: _OneShot | None = None

    def open(self, device: torch.device, store: TCPStore, timeout: float) -> None:
        """Meet the other ranks through `store`; a collective may take `timeout` seconds."""
        os.environ["NCCL_NVLS_ENABLE"] = "0"
        os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
        cuda = device.type == "cuda"
        if not cuda:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
        kwargs: dict[str, Any] = {"device_id": device} if cuda else {}
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout),
            **kwargs,
        )
        if cuda and os.environ.get("SWEQ_ONE_SHOT", "1") != "0":
            self._one_shot = self._open_one_shot(device)

    def close(self) -> None:
        """Leave the other ranks."""
        self._one_shot = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, the same bits on each; `x` may be overwritten."""
        if self.size == 1:
            return x
        if self._one_shot is not None and self._one_shot.takes(x):
            return self._one_shot(x)
        x = x.contiguous()
        dist.all_reduce(x)
        return x

    def gather_columns(self, x: Tensor) -> Tensor:
        """All ranks' `x` [T, n] of one shape side by side in order of rank, [T, size · n]."""
        if self.size == 1:
            return x
        parts = x.new_empty(self.size * x.shape[0], x.shape[1])
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the old name, before 2.13
        gather(parts, x.contiguous())
        return parts.view(self.size, *x.shape).transpose(0, 1).flatten(1)

    def least(self, value: int) -> int:
        """The least of the numbers that the ranks bring."""
        if self.size == 1:
            return value
        numbers = torch.tensor([value])
        dist.all_reduce(numbers, dist.ReduceOp.MIN)
        return int(numbers.item())

    def _open_one_shot(self, device: torch.device) -> "_OneShot | None":
        """One-shot sums if every rank can map the others' memory, else none on any."""
        try:
            opened: _OneShot | None = _OneShot(device)
        except (RuntimeError, ImportError, AttributeError) as error:
            logger.warning("no symmetric memory between the GPUs, NCCL sums all: %s", str(error).split("\n")[0])
            opened = None
        return opened if self.least(int(opened is not None)) else None


class _OneShot:
    """Sums of up to `ONE_SHOT_BYTES`, copied to memory that all ranks can read and added up by each of them."""

    def __init__(self, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symmetric

        world = dist.group.WORLD
        assert world is not None
        self._name: str = world.group_name
        self._buffer = symmetric.empty(ONE_SHOT_BYTES, dtype=torch.uint8, device=device)
        symmetric.rendezvous(self._buffer, self._name)
        self._add = torch.ops.symm_mem.one_shot_all_reduce

    def takes(self, x: Tensor) -> bool:
        return x.nbytes <= ONE_SHOT_BYTES and x.dtype in (torch.bfloat16, torch.float32) and x.nbytes % 16 == 0

    def __call__(self, x: Tensor) -> Tensor:
        mine = self._buffer[: x.nbytes].view(x.dtype).view(x.shape)
        mine.copy_(x)
        summed: Tensor = self._add(mine, "sum", self._name)
        return summed


def vocabulary_part(vocabulary: int, rank: int, size: int) -> range:
    """Rows of the head: equal parts, of which the last may be shorter."""
    each = -(-vocabulary // size)
    return range(min(vocabulary, rank * each), min(vocabulary, (rank + 1) * each))
