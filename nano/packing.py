"""Episodes packed into batches of rows of like length, by seed: numpy only, for the processes that make them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nano.data.episodes import Episode
from nano.makers import TASK, Makers
from nano.shape import CHUNK

POOL = 1024
"""Seeds whose episodes are sorted by length together; batches are drawn from within a pool."""
WIDTH = 2 * CHUNK
"""Rows are padded to a multiple of this many tokens."""
_MOST_FAILED = 0.02


@dataclass(frozen=True)
class Position:
    """Where in the data training stands: the pool, and the next batch of it."""

    pool: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Batch:
    """Episodes side by side.

    `token_ids` int32 [B, N, CHUNK], 0 in the padding; `lengths` int32 [B]; `places` int64 [M]: the flat tokens after
    which one is to be predicted, `targets` int64 [M] which; `edits` int32 [M]: the row of B whose edit call the target
    is part of, else −1. `after` is the position of the next batch.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    edits: np.ndarray
    after: Position


@dataclass
class Failures:
    """Seeds that gave no episode, or too long a one: tolerated while few, counted in the log."""

    tried: int = 0
    failed: int = 0
    too_long: int = 0
    first: str = ""

    def add(self, tried: int, reasons: Sequence[str]) -> None:
        self.tried += tried
        self.failed += len(reasons)
        self.first = self.first or (reasons[0] if reasons else "")
        if self.failed > max(20, _MOST_FAILED * self.tried):
            raise RuntimeError(f"{self.failed} of {self.tried} seeds gave no episode; the first: {self.first}")


def pack(episodes: Sequence[Episode], after: Position) -> Batch:
    """Episodes as the rows of one batch, as wide as the longest asks for."""
    lengths = np.array([len(episode.token_ids) for episode in episodes], dtype=np.int32)
    width = padded_width(int(lengths.max()))
    token_ids = np.zeros((len(episodes), width), dtype=np.int32)
    wanted, edits = np.zeros(token_ids.shape, dtype=bool), np.full(token_ids.shape, -1, dtype=np.int32)
    for row, episode in enumerate(episodes):
        token_ids[row, : lengths[row]] = episode.token_ids
        wanted[row, 1 : lengths[row]] = episode.mask[1:]  # nothing precedes the first token
        for start, end in episode.edit_spans:
            edits[row, start:end] = row
    flat = np.flatnonzero(wanted)
    targets = token_ids.reshape(-1)[flat].astype(np.int64)
    chunks = token_ids.reshape(len(episodes), -1, CHUNK)
    return Batch(chunks, lengths, flat - 1, targets, edits.reshape(-1)[flat], after)


def padded_width(length: int) -> int:
    return -(-length // WIDTH) * WIDTH


def arrange(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cut episodes, sorted by length, into as few groups of at most `tokens` padded tokens as can be, of like size."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    widths = [padded_width(lengths[index]) for index in order]
    fewest = len(_groups(widths, tokens))
    low, high = 0, tokens
    while high - low > WIDTH:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_groups(widths, middle)) <= fewest else (middle, high)
    cuts = _groups(widths, high)
    return [order[start:end] for start, end in cuts]


def _groups(widths: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """Ranges of rows of ascending `widths`; one row alone may be larger than `tokens`."""
    groups, start = [], 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or (end + 1 - start) * widths[end] > tokens:
            groups.append((start, end))
            start = end
    return groups


@dataclass
class Source:
    """Batches of the episodes of a part from seed `first_seed` on, made by `workers` processes (0: by this one)."""

    first_seed: int
    tokens: int
    workers: int
    part: str = "train"
    longest: int = 6144
    failures: Failures = field(default_factory=Failures)

    def batches(self, position: Position = Position()) -> Iterator[Batch]:
        """Without end, from `position` on. The same seed, tokens and position give the same batches everywhere."""
        makers = Makers(self.workers)
        try:
            for number, pool in enumerate(self._pools(makers, position.pool), position.pool):
                skip = position.batch if number == position.pool else 0
                yield from self._of_pool(number, pool, skip)
        finally:
            makers.close()

    def _of_pool(self, number: int, pool: Sequence[Episode], skip: int) -> Iterator[Batch]:
        groups = arrange([len(episode.token_ids) for episode in pool], self.tokens)
        order = np.random.default_rng((self.first_seed, number)).permutation(len(groups))
        for place in range(skip, len(groups)):
            last = place + 1 == len(groups)
            after = Position(number + 1) if last else Position(number, place + 1)
            yield pack([pool[index] for index in groups[order[place]]], after)

    def _pools(self, makers: Makers, first: int) -> Iterator[list[Episode]]:
        results = makers.results(self.part, self.first_seed + first * POOL)
        while True:
            pool: list[Episode] = []
            for _ in range(POOL // TASK):
                episodes, reasons = next(results)
                self.failures.add(TASK, reasons)
                short = [episode for episode in episodes if len(episode.token_ids) <= self.longest]
                self.failures.too_long += len(episodes) - len(short)
                pool += short
            yield pool
