"""Episodes by seed, and a stream of them from many processes."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from harness.starter.generate import generate
from nano.data.conversation import Conversation
from nano.data.expert import solve
from nano.data.render import Episode, tokenize

__all__ = ["Episode", "episode_stream", "make_conversation", "make_episode"]

_CHUNK = 32
_CHUNKS_AHEAD = 3
"""Per worker: what may lie ready while the reader is busy."""


def make_conversation(seed: int, part: str = "train") -> Conversation:
    """The expert's work on the generated instance of this seed and part (`harness.starter.generate.PARTS`)."""
    return solve(generate(seed, part), seed)


def make_episode(seed: int, part: str = "train") -> Episode:
    """`make_conversation`, tokenized. The same seed and part give the same episode on every machine."""
    return tokenize(make_conversation(seed, part))


def episode_stream(first_seed: int, workers: int, part: str = "train") -> Iterator[Episode]:
    """Episodes of the seeds `first_seed`, `first_seed + 1`, ... in this order, without end, made by `workers` processes.

    The processes are spawned, so a program that reads the stream needs `if __name__ == "__main__"`. Closing the
    iterator ends them.
    """
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    waiting: deque[Future[list[Episode]]] = deque()
    seed = first_seed
    try:
        while True:
            while len(waiting) < workers * _CHUNKS_AHEAD:
                waiting.append(pool.submit(_make_chunk, seed, part))
                seed += _CHUNK
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _make_chunk(first: int, part: str) -> list[Episode]:
    return [make_episode(seed, part) for seed in range(first, first + _CHUNK)]
