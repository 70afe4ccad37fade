"""Batches on their way to the device: made ahead by a thread, copied from pinned memory without waiting."""

import queue
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nano.packing import Batch, Position, Source

_AHEAD = 8


@dataclass(frozen=True)
class DeviceBatch:
    """A `Batch` as the model takes it: int64 ids [B, N, C], float32 valid likewise, int64 places and targets [M]."""

    token_ids: Tensor
    valid: Tensor
    places: Tensor
    targets: Tensor
    edits: np.ndarray
    tokens: int
    rows: int
    after: Position


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch; the host does not wait for a GPU."""

    def moved(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    token_ids, lengths = moved(batch.token_ids), moved(batch.lengths)
    rows, chunks, size = token_ids.shape
    number = torch.arange(chunks * size, device=device).view(1, chunks, size)
    valid = (number < lengths.view(rows, 1, 1)).float()
    tokens = int(batch.lengths.sum())
    moved_rest = (moved(batch.places), moved(batch.targets))
    return DeviceBatch(token_ids.long(), valid, *moved_rest, batch.edits, tokens, rows, batch.after)


class Feed:
    """The batches of a source from a position on, up to `_AHEAD` of them ready; `waited` counts seconds lost."""

    def __init__(self, source: Source, position: Position, device: torch.device) -> None:
        self.waited = 0.0
        self._device = device
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(source, position), daemon=True)
        self._thread.start()

    def next(self) -> DeviceBatch:
        """The next batch on the device; raises what the source raised."""
        start = time.monotonic()
        batch = self._ready.get()
        self.waited += time.monotonic() - start
        if isinstance(batch, BaseException):
            raise batch
        return to_device(batch, self._device)

    def close(self) -> None:
        """End the thread and the processes behind it."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _fill(self, source: Source, position: Position) -> None:
        batches = source.batches(position)
        try:
            for batch in batches:
                self._ready.put(batch)
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self._ready.put(error)
        finally:
            batches.close()  # type: ignore[attr-defined]
