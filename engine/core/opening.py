"""From a model's name to an engine that is ready, over one rank or several."""

from collections.abc import Sequence

import torch

from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.ranks import Ranks
from engine.quant.formats import check_level
from engine.weights.loader import load, memory_report, open_source, resolve
from engine.weights.shard import Shard

FEW_WEIGHTS = 64 << 20
"""Bytes of weights below which one CPU thread computes: a second one is waited for longer than it helps. On two cores
that others use as well, a model of 22 MiB took a fifth more time to decode with both and a third more to score a text,
and twice as long to compile its kernels at first."""


def load_engine(model: str, quant: str, config: EngineConfig) -> Engine:
    """Load `model` at level `quant`, over as many ranks as `config` says, and make it ready.

    The other ranks end with this process, or at `Engine.close`.
    """
    if config.tensor_parallel_size == 1:
        return Engine(load(model, quant, config.device), config)
    source = open_source(resolve(model))
    Shard.of(source.config, 0, config.tensor_parallel_size, check_level(quant), source.types())
    ranks = Ranks(model, quant, config)
    try:
        checkpoint = load(model, quant, config.device, 0, config.tensor_parallel_size)
        ranks.open()
        return Engine(checkpoint, config, ranks)
    except BaseException:
        ranks.close()
        raise


def suit_threads(engines: Sequence[Engine]) -> None:
    """Let this process, whose only work `engines` are, compute on one thread if they are on CPU and small."""
    weights = sum(sum(memory_report(engine.checkpoint).values()) for engine in engines)
    if weights < FEW_WEIGHTS and all(engine.config.device == "cpu" for engine in engines):
        torch.set_num_threads(1)
