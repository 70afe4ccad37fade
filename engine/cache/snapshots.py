"""Saved DeltaNet states: what makes a cached prefix of a hybrid model usable again.

Keys and values are addressed by token, so any prefix of a text can be read from them. A recurrent state is not: it is
known only at the token after which it was saved. A saved state is large (72 MiB for Qwen3-Coder-Next, the keys and
values of three thousand tokens) and one serves every text that goes through its place, so few are kept, where agents
come back to: the end of each prompt, the end of each answer, and where prompts that share a beginning part ways.

There are two tiers of fixed size. A new snapshot goes to the device. When that is full, the least recently used one
moves to host memory; when that is full too, the least recently used one there is dropped, and whoever keeps it is told.
One that is used again comes back to the device. Pinned snapshots stay where they are. On CPU the two are the same
memory, and there is one tier.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import psutil
import torch

from engine.cache.delta_state import DeltaSnapshot, DeltaState, slot_bytes, state_dtype
from engine.config import EngineConfig, ModelConfig
from engine.errors import UserError

Source = Literal["device", "host"]

SNAPSHOTS_EACH = 24
"""Snapshots per running sequence that the device tier is made for: the ends of prompts and answers of a dozen turns.
Moving one to the host makes everyone wait for some 25 ms."""

SHARE_OF_FREE = 0.125
"""Share of free memory that a tier takes at most unless told otherwise; of a GPU's, which holds little else, twice
that."""


@dataclass(eq=False)
class Snapshot:
    """One saved state; `on_drop` is called when the store gives it up of its own accord."""

    state: DeltaSnapshot
    on_drop: Callable[[], None]
    pinned: bool = False


@dataclass
class _Tier:
    name: Source
    capacity: int
    kept: OrderedDict[Snapshot, None] = field(default_factory=OrderedDict)

    @property
    def victim(self) -> Snapshot | None:
        return next((snapshot for snapshot in self.kept if not snapshot.pinned), None)


class SnapshotStore:
    """Keeps as many snapshots of `state` as the two budgets, in bytes, have room for."""

    def __init__(self, state: DeltaState, device_bytes: int, host_bytes: int) -> None:
        self._state = state
        each = state.nbytes // state.slots
        self._tiers = [_Tier("device", device_bytes // each), _Tier("host", host_bytes // each)]

    def __len__(self) -> int:
        return sum(len(tier.kept) for tier in self._tiers)

    def count(self, source: Source) -> int:
        """Snapshots in a tier."""
        return sum(len(tier.kept) for tier in self._tiers if tier.name == source)

    def save(self, slot: int, on_drop: Callable[[], None]) -> Snapshot | None:
        """Copy a slot's state; None when pinned snapshots fill the store."""
        for index, tier in enumerate(self._tiers):
            if self._make_room(index):
                state = self._state.save(slot)
                snapshot = Snapshot(state.to_host() if tier.name == "host" else state, on_drop)
                tier.kept[snapshot] = None
                return snapshot
        return None

    def load(self, snapshot: Snapshot, slot: int) -> Source:
        """Make a slot what it was when the snapshot was saved; says which tier it came from."""
        tier = self._tier(snapshot)
        tier.kept.move_to_end(snapshot)
        self._state.load(slot, snapshot.state)
        if tier is not self._tiers[0] and not snapshot.pinned:
            self._promote(snapshot, tier, slot)
        return tier.name

    def _promote(self, snapshot: Snapshot, tier: _Tier, slot: int) -> None:
        """Keep on the device again what a slot has just been given; the copy between two tiers is made once."""
        del tier.kept[snapshot]
        first = self._tiers[0]
        if not self._make_room(0):
            first = tier
        else:
            snapshot.state = self._state.save(slot)
        first.kept[snapshot] = None

    def drop(self, snapshot: Snapshot) -> None:
        """Give a snapshot up at once, at its keeper's wish: `on_drop` is not called."""
        del self._tier(snapshot).kept[snapshot]

    def _tier(self, snapshot: Snapshot) -> _Tier:
        return next(tier for tier in self._tiers if snapshot in tier.kept)

    def _make_room(self, index: int) -> bool:
        """Whether tier `index` has room for one more, after moving its victim down or out as needed."""
        tier = self._tiers[index]
        if len(tier.kept) < tier.capacity:
            return True
        victim = tier.victim
        if victim is None:
            return False
        del tier.kept[victim]
        if index + 1 < len(self._tiers) and self._make_room(index + 1):
            victim.state = victim.state.to_host()
            self._tiers[index + 1].kept[victim] = None
        else:
            victim.on_drop()
        return True


def plan_snapshots(
    model: ModelConfig, engine: EngineConfig, window_dtype: torch.dtype, free_bytes: int
) -> tuple[int, int]:
    """Bytes for the device and the host tier: as the configuration says, else shares of what is free on each.

    (0, 0) for a model without DeltaNet layers or when prefix reuse is off; on CPU the host's budget is added to the
    device's. UserError when there is not room for one snapshot.
    """
    each = slot_bytes(model, window_dtype, state_dtype(engine))
    if not each or not engine.prefix_cache:
        return 0, 0
    device, host = engine.state_cache_bytes, engine.host_state_cache_bytes
    if device is None:
        share = SHARE_OF_FREE if engine.device == "cpu" else 2 * SHARE_OF_FREE
        device = min(SNAPSHOTS_EACH * engine.max_running * each, int(free_bytes * share))
    if engine.device == "cpu":
        device, host = device + (host or 0), 0
    elif host is None:
        host = int(psutil.virtual_memory().available * SHARE_OF_FREE)
    if max(device, host) < each:
        raise UserError(
            f"state_cache_bytes {device} holds no DeltaNet snapshot of {each} bytes: "
            "raise it or switch prefix_cache off"
        )
    return device, host
