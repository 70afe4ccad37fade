"""Episodes by seed, and a stream of them from many processes."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from itertools import cycle
from pathlib import Path

from harness.starter.generate import generate
from nano.data.conversation import Conversation
from nano.data.expert import solve
from nano.data.render import Episode, tokenize

__all__ = ["Episode", "episode_stream", "make_conversation", "make_episode"]

_CHUNK = 32
_ROOT = Path(__file__).parents[2]
_AHEAD = 1 << 20
"""Bytes: what a process may make, some 200 episodes, before the reader takes it."""


def make_conversation(seed: int, part: str = "train") -> Conversation:
    """The expert's work on the generated instance of this seed and part (`harness.starter.generate.PARTS`)."""
    return solve(generate(seed, part), seed)


def make_episode(seed: int, part: str = "train") -> Episode:
    """`make_conversation`, tokenized. The same seed and part give the same episode in every process."""
    return tokenize(make_conversation(seed, part))


def episode_stream(first_seed: int, workers: int, part: str = "train") -> Iterator[Episode]:
    """Episodes of the seeds from `first_seed` on, in this order, without end, made by `workers` processes.

    Closing the iterator ends them. Raises RuntimeError when one of them fails, which says why on standard error.
    """
    makers = [_start(first_seed + number * _CHUNK, workers * _CHUNK, part) for number in range(workers)]
    try:
        for maker in cycle(makers):
            yield from _read_chunk(maker)
    finally:
        for maker in makers:
            maker.kill()
            maker.communicate()


def _start(first_seed: int, step: int, part: str) -> subprocess.Popen[bytes]:
    """A process that makes every chunk of seeds at a distance of `step`.

    Not one of `multiprocessing`: it would import what the training program imports, torch and its kernels.
    """
    command = [sys.executable, "-m", "nano.data.episodes", str(first_seed), str(step), part]
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    maker = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    assert maker.stdout is not None
    with suppress(OSError):  # a smaller pipe works too, only less ahead
        fcntl(maker.stdout, F_SETPIPE_SZ, _AHEAD)
    return maker


def _read_chunk(maker: subprocess.Popen[bytes]) -> list[Episode]:
    assert maker.stdout is not None
    try:
        chunk: list[Episode] = pickle.load(maker.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise RuntimeError(f"a process that makes episodes ended with status {maker.wait()}") from error
    return chunk


def main(arguments: Sequence[str]) -> None:
    """Write chunks of episodes to standard output until nobody reads them: first seed, distance of chunks, part."""
    first_seed, step, part = int(arguments[0]), int(arguments[1]), arguments[2]
    with suppress(BrokenPipeError):
        while True:
            chunk = [make_episode(seed, part) for seed in range(first_seed, first_seed + _CHUNK)]
            pickle.dump(chunk, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()
            first_seed += step


if __name__ == "__main__":
    main(sys.argv[1:])
