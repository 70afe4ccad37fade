"""A rank other than the first: a process that repeats, over its part of the model, what the first rank did.

The first rank schedules, owns the cache's bookkeeping and samples. It sends every operation that touches the device, in
order: steps, changes of DeltaNet's states, and copies to host memory and back (`engine.core.ranks`). Run as
`python -m engine.core.follower WIRE LIFELINE`, two inherited file descriptors: the connection, and a pipe that is
closed when the first rank is gone, whatever this process waits for then.
"""

import os
import pickle
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import torch

from engine.cache.delta_state import DeltaSnapshot
from engine.cache.swap import copy_blocks_in, copy_blocks_out
from engine.config import EngineConfig
from engine.core.placement import PlacedModel, place_model
from engine.core.request import Request
from engine.core.sequence import Chunk, SequenceState
from engine.core.text_stream import TextStream
from engine.errors import UserError
from engine.parallel.group import Group, TCPStore
from engine.text.tokenizer import Tokenizer
from engine.weights.loader import load


@dataclass(frozen=True)
class Assignment:
    """What a follower is told first. `config.device` is its own, `port` that of the ranks' store on this machine."""

    model: str
    quant: str
    config: EngineConfig
    rank: int
    port: int


@dataclass(frozen=True)
class ChunkNews:
    """A chunk, and what is new of its sequence since it was last heard of; None stands for no change."""

    number: int
    request: Request | None
    index: int
    new_tokens: list[int]
    blocks: list[int] | None
    cached_blocks: int
    slot: int | None
    computed: int
    tokens: int


class Follower:
    """Applies commands `(name, *arguments)`, the names being those of its methods."""

    def __init__(self, placed: PlacedModel, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._runner, self._state = placed.runner, placed.state
        self._layers = list(placed.cache.kv.values())
        self._sequences: dict[int, SequenceState] = {}
        self._snapshots: dict[int, DeltaSnapshot] = {}
        self._images: dict[int, Any] = {}

    def apply(self, command: tuple[Any, ...]) -> None:
        getattr(self, command[0])(*command[1:])

    def run(self, news: list[ChunkNews], every_row: bool) -> None:
        """Take part in a step; its logits are the first rank's affair."""
        self._runner.run([self._chunk(one) for one in news], every_row=every_row)

    def forget(self, number: int) -> None:
        """A sequence is over."""
        self._sequences.pop(number, None)

    def zero(self, slot: int) -> None:
        self._delta.zero(slot)

    def copy(self, source: int, target: int) -> None:
        self._delta.copy(source, target)

    def save(self, number: int, slot: int) -> None:
        self._snapshots[number] = self._delta.save(slot)

    def to_host(self, number: int) -> None:
        self._snapshots[number] = self._snapshots[number].to_host()

    def load(self, slot: int, number: int) -> None:
        self._delta.load(slot, self._snapshots[number])

    def drop(self, number: int) -> None:
        """A snapshot is no longer kept."""
        self._snapshots.pop(number, None)

    def swap_out(self, number: int, blocks: list[int]) -> None:
        self._images[number] = copy_blocks_out(self._layers, blocks)

    def swap_in(self, number: int, blocks: list[int], known: int) -> None:
        copy_blocks_in(self._layers, self._images[number], blocks, known)

    def swap_drop(self, number: int) -> None:
        """An image is no longer kept."""
        self._images.pop(number, None)

    @property
    def _delta(self) -> Any:
        return self._state

    def _chunk(self, news: ChunkNews) -> Chunk:
        sequence = self._sequences.get(news.number)
        if sequence is None:
            assert news.request is not None
            # Draws and text are the first rank's affair; here neither is asked for.
            text = TextStream(self._tokenizer.detokenizer(), ())
            sequence = SequenceState(news.request, [], Random(0), text, index=news.index)
            self._sequences[news.number] = sequence
        sequence.token_ids += news.new_tokens
        if news.blocks is not None:
            sequence.blocks = news.blocks
        sequence.cached_blocks, sequence.slot, sequence.computed = news.cached_blocks, news.slot, news.computed
        return Chunk(sequence, news.tokens)


def serve(wire: "Connection[Any, Any]") -> None:
    """Load a part, then follow until the connection closes. A UserError is sent to the first rank."""
    start: Assignment = wire.recv()
    config, size = start.config, start.config.tensor_parallel_size
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        checkpoint = load(start.model, start.quant, config.device, start.rank, size)
    except UserError as error:
        wire.send(error)
        return
    wire.send(None)
    group = Group(start.rank, size)
    store = TCPStore("127.0.0.1", start.port, is_master=False)
    group.open(device, store, config.collective_timeout)
    with torch.inference_mode():
        follower = Follower(place_model(checkpoint, config, group), checkpoint.tokenizer)
        _await(wire, device)
        while True:
            commands = pickle.loads(wire.recv_bytes())
            for command in commands:
                follower.apply(command)
            _await(wire, device)


def _await(wire: "Connection[Any, Any]", device: torch.device) -> None:
    """Beside a GPU, look for the next step without sleeping for a while: waking up would cost part of the step."""
    if device.type == "cuda":
        for _ in range(20_000):
            if wire.poll(0):
                return


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def main() -> None:
    wire: Connection[Any, Any] = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        serve(wire)
    except EOFError:
        os._exit(0)
    except Exception as error:
        try:
            wire.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            os._exit(1)


if __name__ == "__main__":
    main()
