from collections.abc import Callable
from random import Random

import pytest
import torch
from engine_runs import run
from torch import Tensor

from engine.core.engine import Engine
from engine.core.request import Request, SamplingParams
from engine.errors import ContextLengthError, RequestError, UserError
from engine.weights.loader import Checkpoint

Make = Callable[..., Engine]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def prompt(length: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(256) for _ in range(length)]


def test_text_does_not_depend_on_batch_preemption_or_prefix_cache(make_engine: Make) -> None:
    """Seeded and greedy requests alone, in a batch, in a pool that forces preemption, and without prefix reuse."""
    shared = prompt(40, 0)
    wishes = {
        str(i): (
            [*shared[: 8 * i], *prompt(9, i)],
            SamplingParams(max_tokens=60, temperature=0.0 if i % 2 else 0.8, top_p=0.9, seed=i, ignore_eos=True),
        )
        for i in range(1, 6)
    }
    alone = {name: run(make_engine(prefix_cache=False), {name: wish})[name].token_ids for name, wish in wishes.items()}
    for limits in ({}, {"prefix_cache": False}, {"num_blocks": 9}, {"max_running": 2, "max_step_tokens": 7}):
        engine = make_engine(**limits)
        together = run(engine, wishes)
        assert {name: completion.token_ids for name, completion in together.items()} == alone, limits
        assert engine.stats()["blocks_used"] == 0
        if limits == {"num_blocks": 9}:
            assert engine.stats()["preemptions"] > 0


def test_a_repeated_prompt_is_served_from_the_prefix_cache(make_engine: Make) -> None:
    engine = make_engine()
    ids = prompt(50, 1)
    cold = run(engine, {"a": (ids, GREEDY)})["a"]
    warm = run(engine, {"b": (ids + cold.token_ids + prompt(3, 2), GREEDY)})["b"]
    assert (cold.cached_tokens, warm.cached_tokens) == (0, 48)
    assert engine.stats()["prefix_hit_tokens"] == 48
    assert engine.stats()["prompt_tokens"] == 50 + 65


def test_padding_rows_are_never_chosen(make_engine: Make) -> None:
    hot = SamplingParams(max_tokens=60, temperature=3.0, seed=1, ignore_eos=True)
    done = run(make_engine(), {"greedy": (prompt(5, 1), GREEDY), "hot": (prompt(5, 2), hot)})
    assert max(i for completion in done.values() for i in completion.token_ids) < 256


def test_logits_equal_those_that_choose_tokens(make_engine: Make) -> None:
    engine = make_engine(max_step_tokens=32)
    ids = prompt(70, 5)
    done = run(engine, {"a": (ids, SamplingParams(max_tokens=3, temperature=0.0, logprobs=2))})["a"]
    logits = engine.logits(ids + done.token_ids)
    assert logits.shape == (73, 272)
    rows = logits[69:72, :256].log_softmax(-1)
    assert rows.argmax(-1).tolist() == done.token_ids
    for row, found in zip(rows, done.logprobs or [], strict=True):
        assert found.logprob == pytest.approx(row.max().item(), abs=1e-4)
        assert [i for i, _ in found.top] == row.topk(2).indices.tolist()
    assert engine.stats()["blocks_used"] == 0


def test_stop_strings_end_the_text_and_concatenate(make_engine: Make, checkpoint: Checkpoint) -> None:
    free = run(make_engine(), {"a": (prompt(6, 9), GREEDY)})["a"]
    text = checkpoint.tokenizer.decode(free.token_ids)
    stop = text[4:6]
    params = SamplingParams(max_tokens=12, temperature=0.0, stop=("never this", stop))
    stopped = run(make_engine(), {"a": (prompt(6, 9), params)})["a"]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert free.text == text
    assert free.finish_reason == "length"


def test_a_stop_token_ends_the_text_before_itself(make_engine: Make) -> None:
    free = run(make_engine(), {"a": (prompt(6, 9), GREEDY)})["a"]
    at = free.token_ids.index(free.token_ids[5])
    params = SamplingParams(max_tokens=12, temperature=0.0, stop_token_ids=(free.token_ids[5],))
    stopped = run(make_engine(), {"a": (prompt(6, 9), params)})["a"]
    assert stopped.token_ids == free.token_ids[: at + 1]
    assert stopped.finish_reason == "stop"
    assert free.text.startswith(stopped.text.rstrip("\ufffd"))


def test_abort_frees_at_once(make_engine: Make) -> None:
    engine = make_engine(prefix_cache=False)
    for name in ("a", "b"):
        engine.add(Request(name, tuple(prompt(30, 3)), GREEDY))
    engine.step()
    assert engine.stats()["blocks_used"] > 0
    engine.abort("a")
    engine.abort("b")
    engine.abort("unknown")
    assert engine.stats()["blocks_used"] == 0
    assert not engine.has_work


@pytest.mark.parametrize("poison", ["raise", "nan"])
def test_a_failing_request_ends_alone(make_engine: Make, monkeypatch: pytest.MonkeyPatch, poison: str) -> None:
    """Token 255 makes the model raise, or give logits that are not numbers."""
    engine = make_engine()
    decoder = engine._runner._decoder
    forward = decoder.forward

    def poisoned(batch, cache) -> Tensor:
        bad = batch.token_ids == 255
        if poison == "raise" and bad.any():
            raise RuntimeError("poison")
        logits = forward(batch, cache)
        return torch.where(bad[batch.logit_rows][:, None], torch.nan, logits)

    monkeypatch.setattr(decoder, "forward", poisoned)
    good = [i % 200 for i in prompt(6, 4)]
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    reference = run(make_engine(), {"good": (good, params)})["good"]
    done = run(engine, {"bad": ([1, 2, 255], params), "good": (good, params)})
    assert done["bad"].finish_reason == "error"
    assert done["bad"].error
    assert done["good"].token_ids == reference.token_ids
    assert engine.stats()["blocks_used"] == 0


@pytest.mark.parametrize(
    ("ids", "params", "message"),
    [
        ([], GREEDY, "empty"),
        ([1, 999], GREEDY, "token ids outside 0..271"),
        ([1], SamplingParams(top_p=0.0), "top_p is 0.0; it must be above 0"),
        ([1], SamplingParams(temperature=float("nan")), "temperature"),
        ([1], SamplingParams(max_tokens=0), "max_tokens is 0"),
    ],
)
def test_bad_requests_are_refused(make_engine: Make, ids: list[int], params: SamplingParams, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_engine().add(Request("a", tuple(ids), params))


def test_too_long_a_request_is_refused_at_admission(make_engine: Make) -> None:
    engine = make_engine(num_blocks=4)
    assert engine.max_context == 64
    engine.add(Request("fits", tuple(prompt(52, 1)), GREEDY))
    with pytest.raises(ContextLengthError, match="context is 64 tokens"):
        engine.add(Request("too long", tuple(prompt(53, 1)), GREEDY))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_running": 64, "max_step_tokens": 32}, "max_step_tokens 32 is below max_running 64"),
        ({"block_size": 0}, "block_size is 0"),
        ({"num_blocks": 2, "max_context": 100}, "lower max_context to 32"),
    ],
)
def test_configurations_that_cannot_work_are_refused(make_engine: Make, limits: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_engine(**limits)
