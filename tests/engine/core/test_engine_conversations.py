"""Conversations that end, and prefixes that are pinned, as the engine's callers see them."""

import pytest

from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.request import Request, SamplingParams
from engine.errors import UserError
from engine.weights.loader import Checkpoint

PARAMS = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)


@pytest.fixture
def engine(hybrid: Checkpoint) -> Engine:
    return Engine(hybrid, EngineConfig(num_blocks=40, max_running=4, max_context=400))


def serve(engine: Engine, name: str, prompt: range, session: str | None = None) -> int:
    """Tokens of the prompt that were cached."""
    engine.add(Request(name, tuple(prompt), PARAMS, session))
    return finish(engine)


def finish(engine: Engine) -> int:
    cached = 0
    while engine.has_work:
        cached = max([cached, *(output.cached_tokens for output in engine.step())])
    return cached


def test_an_ended_conversation_is_forgotten_at_once(engine: Engine) -> None:
    assert serve(engine, "1", range(150), "a") == 0
    assert serve(engine, "2", range(150), "a") == 128
    assert engine.end_session("a") == 128
    assert engine.end_session("a") == 0
    assert serve(engine, "3", range(150), "a") == 0
    assert engine.stats()["snapshots_device"] == 1


def test_a_conversation_ends_with_its_last_request(engine: Engine) -> None:
    engine.add(Request("1", tuple(range(150)), PARAMS, "a"))
    engine.step()
    assert engine.end_session("a") == 0
    finish(engine)
    stats = engine.stats()
    assert (stats["blocks_used"], stats["blocks_cached"], stats["snapshots_device"]) == (0, 0, 0)


def test_what_others_use_stays(engine: Engine) -> None:
    serve(engine, "1", range(150), "a")
    serve(engine, "2", range(150))
    assert engine.end_session("a") == 0
    assert serve(engine, "3", range(150)) == 128


def test_a_pinned_prefix_survives_requests_that_fill_the_pool(engine: Engine) -> None:
    serve(engine, "1", range(150))
    assert engine.pin(list(range(150))) == 128
    for number in range(4):
        serve(engine, f"other {number}", range(200 - number, 0, -1))
    assert serve(engine, "2", range(150)) == 128
    engine.unpin()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"deterministic": True, "prefill_tile": 100}, "prefill_tile is 100; it must be a multiple of 64"),
        ({"deterministic": True, "max_step_tokens": 100}, "max_step_tokens 100 is below 132"),
        ({"state_cache_bytes": 10}, "state_cache_bytes 10 holds no DeltaNet snapshot"),
    ],
)
def test_configurations_that_cannot_work_are_refused(hybrid: Checkpoint, limits: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Engine(hybrid, EngineConfig(**{"num_blocks": 40, "max_running": 4} | limits))
