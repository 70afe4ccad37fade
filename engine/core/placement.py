"""A loaded model made ready to run on its device: what every rank does alike."""

from dataclasses import dataclass, replace

import torch

from engine.cache.delta_state import DeltaState, allocate_state
from engine.cache.paged_kv import allocate_cache, usable_memory
from engine.cache.tensors import CacheTensors
from engine.config import EngineConfig, ModelConfig
from engine.core.graphs import DecodeGraphs, decode_graphs
from engine.core.memory import MemoryPlan, plan_memory
from engine.core.mixed_graphs import SIZES, mixed_graphs
from engine.core.runner import Graphs, Runner, activation_dtype, cache_dtype
from engine.model.decoder import Decoder
from engine.parallel.group import Group
from engine.weights.loader import Checkpoint
from engine.weights.shard import local_config


@dataclass(frozen=True)
class PlacedModel:
    """`model` is the shape of this rank's part; `cache` has keys and values alone, `state` those of DeltaNet layers.

    `decode_graphs` are those of the runner's that decode, None where there are none.
    """

    model: ModelConfig
    plan: MemoryPlan
    cache: CacheTensors
    state: DeltaState | None
    runner: Runner
    decode_graphs: DecodeGraphs | None
    max_context: int


def place_model(checkpoint: Checkpoint, config: EngineConfig, group: Group) -> PlacedModel:
    """Divide the device's memory, set up decoder and caches, and capture graphs; all ranks of `group` call it together.

    Raises UserError for what does not fit and CheckpointError for a checkpoint that the decoder cannot run.
    """
    device = torch.device(config.device)
    model = local_config(checkpoint.config, group.size)
    activations = activation_dtype(checkpoint.identity["quant"], device)
    keys = cache_dtype(activations, device)
    # Ranks on CPUs share one memory; the plan must be the same on all.
    free = group.least(usable_memory(device) // (group.size if device.type == "cpu" else 1))
    plan = plan_memory(model, config, activations, keys, free)
    max_context = min(config.max_context or model.max_position, plan.blocks * config.block_size)
    state = allocate_state(model, config, activations, device)
    decoder = Decoder(model, checkpoint.weights, device, activations, group)
    cache = allocate_cache(model, plan.blocks, config.block_size, keys, device)
    tensors = replace(cache, delta=state.layers) if state else cache
    decode, graphs = None, list[Graphs]()
    if config.cuda_graphs:
        room = decoder, tensors, device, config.max_running, max_context
        # Only one rank by itself launches steps ahead (`engine.core.pipeline`).
        ahead = config.decode_ahead and not config.deterministic and group.size == 1
        decode = decode_graphs(*room, min(model.vocab_size, checkpoint.tokenizer.vocab_size) if ahead else None)
        graphs = [captured for captured in (decode, mixed_graphs(*room)) if captured is not None]
    runner = Runner(decoder, tensors, device, graphs)
    if graphs:
        for tokens in _eager_sizes(min(config.step_tokens, max_context)):
            runner.warm_up(tokens)
    return PlacedModel(model, plan, cache, state, runner, decode, max_context)


def _eager_sizes(most: int) -> list[int]:
    """Sizes of steps beyond the graphs whose kernels differ: by the tuning tables, and where 16 is no factor."""
    sizes = [size for size in (2048, 4096, 8192, 16384) if SIZES[-1] < size <= most]
    return [*sizes, most - 1] if most - 1 > SIZES[-1] else sizes
