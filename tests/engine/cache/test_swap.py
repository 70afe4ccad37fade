"""Sequences in host memory: bits that come back as they went, a budget that is kept, and whether it pays."""

from dataclasses import replace

import pytest
import torch

from engine.cache.delta_state import DeltaState
from engine.cache.paged_kv import allocate_cache
from engine.cache.swap import OPERATIONS_PER_BYTE, SwapSpace
from engine.config import ModelConfig
from engine.quant.formats import Packed
from engine.quant.linear import PackedExperts
from engine.weights.layout import tensor_specs
from engine.weights.synthetic import SHAPES, SyntheticSource

CPU, F32 = torch.device("cpu"), torch.float32
TINY = SHAPES["tiny"]


def test_blocks_and_state_come_back_to_other_places() -> None:
    kv, state = allocate_cache(TINY, 8, 16, F32, CPU).kv, DeltaState(TINY, 2, F32, F32, CPU)
    for tensor in [state.window, state.recurrent, *[t for layer in kv.values() for t in (layer.keys, layer.values)]]:
        tensor.normal_()
    before = [(layer.keys.clone(), layer.values.clone()) for layer in kv.values()]
    window, recurrent = state.window[:, 0].clone(), state.recurrent[:, 0].clone()
    space = SwapSpace(kv, state, 1 << 30, 1 << 30)
    image = space.save(40, [5, 2, 7], 0)
    assert image is not None
    assert space.used == image.nbytes > 0
    for tensor in (state.window, state.recurrent, *[t for layer in kv.values() for t in (layer.keys, layer.values)]):
        tensor.zero_()
    space.load(image, [1, 3, 4, 6], 1, 1)
    for layer, (keys, values) in zip(kv.values(), before, strict=True):
        assert torch.equal(layer.keys[[3, 4]], keys[[2, 7]])
        assert torch.equal(layer.values[[3, 4]], values[[2, 7]])
        assert not layer.keys[[1, 6]].any(), "a block that was found, or is new, is not written"
    assert torch.equal(state.window[:, 1], window)
    assert torch.equal(state.recurrent[:, 1], recurrent)
    space.drop(image)
    assert space.used == 0


def test_the_budget_is_kept_and_what_does_not_pay_is_left() -> None:
    kv = allocate_cache(TINY, 4, 16, F32, CPU).kv
    size = sum(2 * layer.keys[:1].nbytes for layer in kv.values())
    space = SwapSpace(kv, None, 3 * size, 1 << 30)
    assert space.save(32, [0, 1], None) is not None
    assert space.save(32, [2, 3], None) is None
    assert space.save(16, [2], None) is not None
    break_even = 2 * size * OPERATIONS_PER_BYTE["cpu"] // 16
    assert SwapSpace(kv, None, 1 << 30, break_even).save(16, [0], None) is None
    assert SwapSpace(kv, None, 1 << 30, break_even + 1).save(16, [0], None) is not None


@pytest.mark.parametrize("config", [SHAPES["llama-tiny"], TINY, replace(TINY, attention_output_gate=False)])
def test_active_weights_are_those_of_the_matrices_that_a_token_meets(config: ModelConfig) -> None:
    source, total = SyntheticSource(config), 0
    for spec in tensor_specs(config):
        weight = source.read(spec)
        if isinstance(weight, PackedExperts):
            total += weight.shape[1] * weight.shape[2] * config.num_experts_per_token
        elif isinstance(weight, Packed) and spec.name.startswith("model.layers"):
            total += weight.shape[0] * weight.shape[1]
    assert config.active_weights == total
