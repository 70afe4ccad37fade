"""Teacher-forced figures on episodes that training never sees: of the parts near, mixed and far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nano.data.episodes import Episode
from nano.feed import DeviceBatch, to_device
from nano.makers import Makers
from nano.model import Nano
from nano.packing import Position, arrange, pack

HELD_OUT = ("near", "mixed", "far")


@dataclass
class Tally:
    """Sums over episodes, from which the figures follow."""

    losses: list[np.ndarray] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)

    def add(self, losses: np.ndarray, hits: np.ndarray, edits: np.ndarray) -> None:
        """Of one batch: each target's loss and whether it is likeliest; `edits` as of `nano.packing.Batch`."""
        self.losses.append(losses)
        self.hits.append(hits)
        self.exact += [bool(hits[edits == row].all()) for row in np.unique(edits[edits >= 0])]

    def figures(self) -> dict[str, Any]:
        """Mean `loss` (nats), `accuracy` of a token, and `edits_exact`: the share of episodes in which every token of
        the right edit is the likeliest after those before it."""
        losses, hits = np.concatenate(self.losses), np.concatenate(self.hits)
        return {
            "loss": float(losses.mean()),
            "accuracy": float(hits.mean()),
            "edits_exact": float(np.mean(self.exact)) if self.exact else None,
            "episodes_with_edit": len(self.exact),
            "tokens": len(losses),
        }


class Validation:
    """Batches of `count` episodes of each held-out part, made once; `count` 0 validates nothing."""

    def __init__(
        self,
        count: int,
        tokens: int,
        workers: int,
        device: torch.device,
        parts: Sequence[str] = HELD_OUT,
        first_seed: int = 0,
    ) -> None:
        self.batches: dict[str, list[DeviceBatch]] = {}
        if count:
            made = _make(first_seed, count, parts, workers)
            for part, episodes in made.items():
                groups = arrange([len(episode.token_ids) for episode in episodes], tokens)
                packed = [pack([episodes[index] for index in group], Position()) for group in groups]
                self.batches[part] = [to_device(batch, device) for batch in packed]

    def figures(self, model: Nano) -> dict[str, dict[str, Any]]:
        """Part -> `Tally.figures`, and each expert's share of a layer's choices, `shares` [layers][experts].

        Gradients are not switched off, though none are taken: compiled functions are then those of training.
        """
        results = {}
        for part, batches in self.batches.items():
            tally, shares = Tally(), []
            for batch in batches:
                seen = model(batch.token_ids, batch.valid, batch.places, batch.targets)
                tally.add(seen.losses.detach().cpu().numpy(), seen.hits.cpu().numpy(), batch.edits)
                shares.append(seen.shares)
                del seen
            mean = torch.stack(shares).mean(0).tolist()
            results[part] = tally.figures() | {"shares": [[round(share, 4) for share in layer] for layer in mean]}
        return results


def _make(seed: int, count: int, parts: Sequence[str], workers: int) -> dict[str, list[Episode]]:
    """The episodes of each part that gave any; seeds that gave none are left out."""
    makers, made = Makers(workers), {}
    try:
        for part in parts:
            results = makers.results(part, seed, seed + count)
            made[part] = [episode for episodes, _ in results for episode in episodes]
    finally:
        makers.close()
    return {part: episodes for part, episodes in made.items() if episodes}
