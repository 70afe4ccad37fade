"""DeltaNet state slots: whose they are, and that a slot's content moves bit for bit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.delta_state import DeltaState, OutOfSlots, SlotPool, allocate_state, plan_state, slot_bytes
from engine.config import EngineConfig
from engine.errors import UserError
from engine.weights.synthetic import SHAPES

CPU = torch.device("cpu")
CONFIG = replace(SHAPES["tiny"], num_layers=3, layer_types=("linear_attention", "full_attention", "linear_attention"))
CHANNELS = 4 * 32 + 4 * 32 + 8 * 32


@pytest.fixture
def state() -> DeltaState:
    return DeltaState(CONFIG, 3, torch.bfloat16, torch.float32, CPU)


def fill(state: DeltaState, slot: int, seed: int) -> None:
    torch.manual_seed(seed)
    for layer in state.layers.values():
        layer.window[slot] = torch.randn(layer.window[slot].shape)
        layer.recurrent[slot] = torch.randn(layer.recurrent[slot].shape)


def test_every_linear_layer_has_its_own_window_and_matrix(state: DeltaState) -> None:
    assert list(state.layers) == [0, 2]
    assert state.layers[2].window.shape == (3, CHANNELS, 3)
    assert state.layers[2].recurrent.shape == (3, 8, 32, 32)
    assert state.nbytes == 3 * slot_bytes(CONFIG, torch.bfloat16, torch.float32)
    fill(state, 1, seed=0)
    assert not state.layers[0].recurrent[[0, 2]].any()
    assert not torch.equal(state.layers[0].recurrent[1], state.layers[2].recurrent[1])


def test_a_slot_is_copied_saved_and_loaded_bit_for_bit(state: DeltaState) -> None:
    fill(state, 0, seed=1)
    snapshot = state.save(0)
    state.copy(0, 2)
    fill(state, 0, seed=2)
    state.load(1, snapshot)
    for layer in state.layers.values():
        for tensor in (layer.window, layer.recurrent):
            assert torch.equal(tensor[1], tensor[2])
            assert not torch.equal(tensor[0], tensor[2])
    assert snapshot.nbytes == slot_bytes(CONFIG, torch.bfloat16, torch.float32)


def test_an_allocated_slot_is_zero_whoever_had_it_before(state: DeltaState) -> None:
    pool = SlotPool(state)
    slot = pool.allocate()
    fill(state, slot, seed=3)
    pool.release(slot)
    assert pool.allocate() == slot
    assert not state.window.any()
    assert not state.recurrent.any()


@given(st.lists(st.booleans(), max_size=40))
def test_slots_are_never_shared_nor_lost(takes: list[bool]) -> None:
    pool, held = SlotPool(DeltaState(CONFIG, 4, torch.float32, torch.float32, CPU)), []
    for take in takes:
        if take and len(held) == 4:
            with pytest.raises(OutOfSlots):
                pool.allocate()
        elif take:
            held.append(pool.allocate())
        elif held:
            pool.release(held.pop(0))
        assert len(set(held)) == len(held) == pool.held == 4 - pool.free


def test_releasing_a_free_slot_is_an_error(state: DeltaState) -> None:
    with pytest.raises(ValueError, match="slot 1 was released"):
        SlotPool(state).release(1)


def test_state_for_all_that_may_run_and_one_more_must_fit() -> None:
    engine = EngineConfig(max_running=7, delta_state_dtype="bfloat16")
    needed = 8 * 2 * (CHANNELS * 3 * 4 + 8 * 32 * 32 * 2)
    assert plan_state(CONFIG, engine, torch.float32, needed) == needed
    with pytest.raises(UserError, match="max_running 7 needs 0 MiB of DeltaNet state"):
        plan_state(CONFIG, engine, torch.float32, needed - 1)
    state = allocate_state(CONFIG, engine, torch.float32, CPU)
    assert state is not None
    assert state.nbytes == needed


def test_a_model_without_linear_layers_has_no_state() -> None:
    assert plan_state(SHAPES["llama-tiny"], EngineConfig(), torch.float32, 0) == 0
    assert allocate_state(SHAPES["llama-tiny"], EngineConfig(), torch.float32, CPU) is None
