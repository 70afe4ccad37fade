"""Where the runs of a step lie, for the DeltaNet kernels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.kernels.reference_delta import CHUNK


@dataclass(frozen=True)
class RunPlan:
    """Where the runs of a step lie; int32 on the device, made once a step, shared by all layers.

    Runs and chunks may be empty; if `padded`, there may be tokens of no run, whose results are zeros.
    """

    slots: Tensor  # [R]
    runs: Tensor  # [R, 3]: first row, tokens, first chunk
    chunks: Tensor  # [N, 2]: first row, tokens
    tokens: Tensor  # [T, 2]: place within the run, run
    padded: bool = False


def plan_runs(lens: tuple[int, ...], slots: Tensor) -> RunPlan:
    """Lay out runs of `lens` tokens, each at least 1, whose states are at `slots` [R]."""
    runs: list[int] = []
    chunks: list[tuple[int, int]] = []
    row = 0
    for length in lens:
        runs += [row, length, len(chunks)]
        chunks += [(row + at, min(CHUNK, length - at)) for at in range(0, length, CHUNK)]
        row += length
    flat = np.array(runs + [number for chunk in chunks for number in chunk], dtype=np.int32)
    run = np.repeat(np.arange(len(lens), dtype=np.int32), lens)
    place = np.arange(row, dtype=np.int32) - np.array(runs[::3], dtype=np.int32)[run]
    host = torch.from_numpy(np.concatenate((flat, np.stack((place, run), 1).ravel())))
    sent = (host.pin_memory() if slots.device.type == "cuda" else host).to(slots.device, non_blocking=True)
    cut = len(runs) + 2 * len(chunks)
    parts = sent[: len(runs)].view(-1, 3), sent[len(runs) : cut].view(-1, 2), sent[cut:].view(-1, 2)
    return RunPlan(slots, *parts)
