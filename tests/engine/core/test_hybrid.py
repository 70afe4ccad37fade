"""The step loop with DeltaNet layers: each sequence keeps its own state, whatever happens around it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_runs import run
from torch import Tensor

from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.request import Request, SamplingParams
from engine.core.sequence import Chunk
from engine.weights.loader import Checkpoint

LENGTHS = {"long": 150, "short": 3, "other": 70}
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_hybrid(hybrid: Checkpoint) -> MakeEngine:
    def make(**limits: Any) -> Engine:
        return Engine(hybrid, EngineConfig(**{"num_blocks": 64, "max_step_tokens": 48, "max_running": 4, **limits}))

    return make


def prompts() -> dict[str, tuple[list[int], SamplingParams]]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randint(0, 250, (length,), generator=generator).tolist(), GREEDY)
        for name, length in LENGTHS.items()
    }


def texts(engine: Engine, wishes: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, list[int]]:
    done = run(engine, wishes)
    assert [completion.error for completion in done.values()] == [None] * len(done)
    assert engine.stats()["state_slots_used"] == 0
    return {name: completion.token_ids for name, completion in done.items()}


@pytest.fixture(scope="module")
def alone(hybrid: Checkpoint) -> dict[str, list[int]]:
    """Each request by itself, its prompt in one step."""
    limits = EngineConfig(num_blocks=64, max_step_tokens=512, max_running=1)
    found = {}
    for name, wish in prompts().items():
        found |= texts(Engine(hybrid, limits), {name: wish})
    return found


def test_generated_tokens_are_the_argmax_of_a_plain_forward(make_hybrid: MakeEngine, alone) -> None:
    for name, (ids, _) in prompts().items():
        logits = make_hybrid(max_step_tokens=512).logits(ids + alone[name][:-1])
        vocabulary = make_hybrid().tokenizer.vocab_size
        assert logits[len(ids) - 1 :, :vocabulary].argmax(-1).tolist() == alone[name]


@pytest.mark.parametrize("limits", [{}, {"max_step_tokens": 7}, {"max_running": 2}, {"block_size": 4}])
def test_text_does_not_depend_on_the_batch(make_hybrid: MakeEngine, alone, limits: dict[str, int]) -> None:
    assert texts(make_hybrid(**limits), prompts()) == alone


def test_preempted_requests_start_again_from_a_zeroed_state(make_hybrid: MakeEngine) -> None:
    """Room for both prompts but not for what they generate."""
    ids, params = prompts()["other"][0], replace(GREEDY, max_tokens=40)
    wishes = {"first": (ids, params), "second": (ids[::-1], params)}
    engine = make_hybrid(num_blocks=12, max_step_tokens=512)
    assert texts(engine, wishes) == texts(make_hybrid(), wishes)
    assert engine.stats()["preemptions"] > 0


def test_logits_leave_running_requests_alone(make_hybrid: MakeEngine, alone) -> None:
    engine = make_hybrid(max_running=1)
    ids, params = prompts()["other"]
    engine.add(Request("other", tuple(ids), params))
    tokens = []
    while engine.has_work:
        tokens += [token for output in engine.step() for token in output.token_ids]
        engine.logits(prompts()["short"][0])
    assert tokens == alone["other"]


def test_abort_gives_the_slot_back_at_once(make_hybrid: MakeEngine) -> None:
    engine = make_hybrid()
    engine.add(Request("long", tuple(prompts()["long"][0]), GREEDY))
    engine.step()
    assert engine.stats()["state_slots_used"] == 1
    engine.abort("long")
    assert engine.stats()["state_slots_used"] == 0


def test_a_failing_request_does_not_spoil_the_states_of_others(make_hybrid: MakeEngine, alone, monkeypatch) -> None:
    """Every step with the bad request fails after the states have moved on, as a failure in a late layer would."""
    engine = make_hybrid()
    compute = engine._runner.run

    def run_and_fail(chunks: Sequence[Chunk], *, every_row: bool = False) -> Tensor:
        logits = compute(chunks, every_row=every_row)
        if any(c.sequence.request.request_id == "bad" and c.sequence.generated > 3 for c in chunks):
            raise RuntimeError("planted")
        return logits

    monkeypatch.setattr(engine._runner, "run", run_and_fail)
    done = run(engine, prompts() | {"bad": (list(range(20)), GREEDY)})
    assert done.pop("bad").error == "RuntimeError: planted"
    assert {name: completion.token_ids for name, completion in done.items()} == alone
    assert engine.stats()["state_slots_used"] == 0


def test_bfloat16_state_is_an_option(make_hybrid: MakeEngine) -> None:
    ids = prompts()["long"][0]
    exact, rounded = (make_hybrid(delta_state_dtype=d).logits(ids) for d in ("float32", "bfloat16"))
    assert 0 < (exact - rounded).abs().max() < 0.2
