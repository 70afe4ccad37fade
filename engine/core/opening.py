"""From a model's name to an engine that is ready, over one rank or several."""

from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.ranks import Ranks
from engine.quant.formats import check_level
from engine.weights.loader import load, open_source, resolve
from engine.weights.shard import Shard


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
