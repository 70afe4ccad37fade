"""Whatever was cached and whoever runs beside it, a request sees the logits it would see alone on an empty engine."""

from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.config import EngineConfig
from engine.core.engine import Engine
from engine.core.request import Request, SamplingParams
from engine.weights.loader import Checkpoint

TILE, TOKENS = 64, 3
PARAMS = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
DETERMINISTIC = {"deterministic": True, "prefill_tile": TILE, "max_step_tokens": 200}
Prompt = tuple[int, ...]


@pytest.fixture(scope="module", params=["llama", "qwen3_next"])
def model(request: pytest.FixtureRequest) -> Checkpoint:
    found: Checkpoint = request.getfixturevalue("checkpoint" if request.param == "llama" else "hybrid")
    return found


@dataclass
class Recorder:
    """An engine, and the logits from which each of its requests chose."""

    engine: Engine
    rows: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        forward = self.engine._forward

        def recorded(chunks: list[Any]) -> Any:
            computed, logits, failures = forward(chunks)
            assert not failures
            for chunk, row in zip([c for c in computed if c.reaches_end], logits, strict=True):
                self.rows.setdefault(chunk.sequence.request.request_id, []).append(row.clone())
            return computed, logits, failures

        self.engine._forward = recorded  # type: ignore[method-assign]

    def finish(self) -> None:
        while self.engine.has_work:
            self.engine.step()

    def serve(self, name: str, prompt: Prompt) -> Tensor:
        """Logits [TOKENS, vocab] that a request alone is answered from."""
        self.engine.add(Request(name, prompt, PARAMS))
        self.finish()
        return torch.stack(self.rows[name])


def engine(model: Checkpoint, **limits: Any) -> Engine:
    return Engine(model, EngineConfig(**{"num_blocks": 80, "max_running": 4, "max_context": 400, **limits}))


def tokens(seed: int, count: int) -> Prompt:
    rng = Random(seed)
    return tuple(rng.randrange(250) for _ in range(count))


def prompt_of(stem: int, shared: int, own: int, length: int) -> Prompt:
    """`shared` tokens of one of two stems and then a text of its own; 1 token at least."""
    return tokens(stem, 400)[:shared] + tokens(100 + own, length)


PROMPT = st.builds(prompt_of, st.integers(0, 1), st.integers(0, 200), st.integers(0, 2), st.integers(1, 90))
ARRIVAL = st.tuples(PROMPT, st.integers(0, 4))
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def arrive_and_finish(recorder: Recorder, arrivals: list[tuple[Prompt, int]]) -> None:
    """Each arrival is a prompt and the number of steps that pass before the next comes."""
    for number, (prompt, steps) in enumerate(arrivals):
        recorder.engine.add(Request(str(number), prompt, PARAMS))
        for _ in range(steps):
            recorder.engine.step()
    recorder.finish()


@SLOW
@given(st.lists(ARRIVAL, min_size=2, max_size=6), st.sampled_from([30, 80]))
def test_tiles_make_warm_equal_cold_bit_for_bit(model: Checkpoint, arrivals: list, num_blocks: int) -> None:
    """In 30 blocks requests push each other out: preempted ones go on with the same bits as well."""

    @cache
    def cold(prompt: Prompt) -> Tensor:
        return Recorder(engine(model, prefix_cache=False, **DETERMINISTIC)).serve("cold", prompt)

    recorder = Recorder(engine(model, num_blocks=num_blocks, **DETERMINISTIC))
    arrive_and_finish(recorder, arrivals)
    for number, (prompt, _) in enumerate(arrivals):
        assert torch.equal(torch.stack(recorder.rows[str(number)]), cold(prompt)), number


@SLOW
@given(st.lists(ARRIVAL, min_size=2, max_size=6))
def test_without_tiles_warm_is_near_cold(model: Checkpoint, arrivals: list) -> None:
    recorder = Recorder(engine(model, max_step_tokens=100))
    arrive_and_finish(recorder, arrivals)
    for number, (prompt, _) in enumerate(arrivals):
        want = Recorder(engine(model, prefix_cache=False)).serve("cold", prompt)
        assert (recorder.rows[str(number)][0] - want[0]).abs().max() < 1e-4


@pytest.mark.parametrize("limits", [{}, DETERMINISTIC])
def test_next_turns_start_where_the_last_ended(model: Checkpoint, limits: dict[str, Any]) -> None:
    """A turn sends prompt and answer again, a retry the prompt alone."""
    recorder = Recorder(engine(model, **limits))
    ids = tokens(3, 200)
    recorder.engine.add(Request("first", ids, SamplingParams(max_tokens=70, temperature=0.0, ignore_eos=True)))
    answer = []
    while recorder.engine.has_work:
        answer += [token for output in recorder.engine.step() for token in output.token_ids]
    known = 200 + 69
    hits = {}
    for name, prompt in (("turn", (*ids, *answer, *tokens(4, 20))), ("retry", ids), ("other", tokens(5, 200))):
        before = recorder.engine.stats()["prefix_hit_tokens"]
        warm = recorder.serve(name, prompt)
        hits[name] = recorder.engine.stats()["prefix_hit_tokens"] - before
        cold = Recorder(engine(model, prefix_cache=False, **limits)).serve("cold", prompt)
        assert (warm - cold).abs().max() < 1e-4
        assert not limits or torch.equal(warm, cold)
    grid = 16 if model.config.architecture == "llama" and not limits else 64
    reach = known if not limits else 200
    assert hits == {"turn": reach // grid * grid, "retry": 199 // grid * grid, "other": 0}


def test_a_tile_that_is_shared_in_part_is_not_shared(model: Checkpoint) -> None:
    """Both prompts compute tokens 64 to 127 in one tile, but with other tokens after the 119th."""
    recorder = Recorder(engine(model, **DETERMINISTIC))
    for own, length in ((0, 20), (1, 84)):
        prompt = prompt_of(1, 119, own, length)
        cold = Recorder(engine(model, prefix_cache=False, **DETERMINISTIC)).serve("cold", prompt)
        assert torch.equal(recorder.serve(str(own), prompt), cold)


def test_the_third_prompt_with_a_beginning_finds_it(hybrid: Checkpoint) -> None:
    """The first prompt's snapshot lies beyond the shared part; the second leaves one where the two part ways."""
    recorder = Recorder(engine(hybrid))
    stem = tokens(7, 150)
    hits = []
    for number in range(3):
        before = recorder.engine.stats()["prefix_hit_tokens"]
        recorder.serve(str(number), (*stem, *tokens(20 + number, 60)))
        hits.append(recorder.engine.stats()["prefix_hit_tokens"] - before)
    assert hits == [0, 0, 128]
    assert recorder.engine.stats()["recomputed_tokens"] == 128


@pytest.mark.parametrize("swap_bytes", [0, 1 << 30])
def test_a_preempted_answer_is_taken_up_with_the_same_bits(model: Checkpoint, swap_bytes: int) -> None:
    long = SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
    prompts = {"first": tokens(8, 150), "second": tokens(9, 150)}
    recorder = Recorder(engine(model, num_blocks=25, swap_bytes=swap_bytes, **DETERMINISTIC))
    for name, ids in prompts.items():
        recorder.engine.add(Request(name, ids, long))
    recorder.finish()
    stats = recorder.engine.stats()
    assert stats["preemptions"] > 0
    assert bool(stats["swapped_tokens"]) == bool(swap_bytes)
    assert bool(stats["recomputed_tokens"]) != bool(swap_bytes)
    for name, ids in prompts.items():
        alone = Recorder(engine(model, prefix_cache=False, **DETERMINISTIC))
        alone.engine.add(Request(name, ids, long))
        alone.finish()
        assert torch.equal(torch.stack(recorder.rows[name]), torch.stack(alone.rows[name]))
