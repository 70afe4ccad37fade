"""Several choices of one request share its prompt's prefix and are what as many seeded requests would give."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from engine_runs import run

from engine.core.engine import Engine
from engine.core.request import Request, SamplingParams, StepOutput
from engine.errors import RequestError

Make = Callable[..., Engine]
PROMPT = tuple(Random(4).randrange(256) for _ in range(40))
HOT = SamplingParams(max_tokens=12, temperature=1.0, top_p=0.9, seed=-1, n=3, ignore_eos=True)


def step_all(engine: Engine) -> list[StepOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def drive(engine: Engine) -> dict[int, list[StepOutput]]:
    outputs = defaultdict(list)
    for output in step_all(engine):
        outputs[output.index].append(output)
    return dict(outputs)


def ids(outputs: list[StepOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("limits", [{}, {"prefix_cache": False}, {"num_blocks": 8}])
def test_choices_equal_seeded_requests_of_their_own(make_engine: Make, limits: dict[str, int]) -> None:
    """Seeds -1, 0 and 1: a generator that drops signs would draw the first and the last alike."""
    engine = make_engine(**limits)
    engine.add(Request("a", PROMPT, HOT))
    together = drive(engine)
    for index in range(3):
        own = run(make_engine(), {"b": (list(PROMPT), replace(HOT, n=1, seed=-1 + index))})["b"]
        assert ids(together[index]) == own.token_ids
    assert len({tuple(ids(outputs)) for outputs in together.values()}) == 3
    assert engine.stats()["blocks_used"] == 0


def test_later_choices_find_the_prompt_in_the_cache(make_engine: Make) -> None:
    engine = make_engine()
    engine.add(Request("a", PROMPT, HOT))
    outputs = drive(engine)
    assert [outputs[index][-1].cached_tokens for index in range(3)] == [0, 32, 32]


def test_choices_end_one_by_one_and_the_first_need_not_be_last(make_engine: Make) -> None:
    engine = make_engine()
    engine.add(Request("a", PROMPT, HOT))
    drawn = {index: ids(outputs) for index, outputs in drive(engine).items()}
    stop = next(token for token in drawn[0] if token not in drawn[1] and token not in drawn[2])
    engine.add(Request("b", PROMPT, replace(HOT, stop_token_ids=(stop,))))
    ends = {index: outputs[-1].finish_reason for index, outputs in drive(engine).items()}
    assert ends == {0: "stop", 1: "length", 2: "length"}


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_abort_ends_all_choices_at_once(make_engine: Make, steps: int) -> None:
    engine = make_engine(prefix_cache=False)
    engine.add(Request("a", PROMPT, HOT))
    for _ in range(steps):
        engine.step()
    engine.abort("a")
    assert not engine.has_work
    assert engine.step() == []
    assert engine.stats()["blocks_used"] == 0


def test_a_choice_that_fails_leaves_the_others_alone(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice fails before the others have begun; they then compute the prompt themselves."""
    engine = make_engine()
    append, failed = engine._append, []

    def fail_once(sequence, token, logits):
        if not failed:
            failed.append(sequence)
            raise RuntimeError("poison")
        return append(sequence, token, logits)

    monkeypatch.setattr(engine, "_append", fail_once)
    engine.add(Request("a", PROMPT, HOT))
    outputs = drive(engine)
    assert [outputs[index][-1].finish_reason for index in range(3)] == ["error", "length", "length"]
    assert engine.stats()["blocks_used"] == 0


def test_penalties_and_bias_steer_and_outlive_preemption(make_engine: Make) -> None:
    never = SamplingParams(max_tokens=40, temperature=0.0, frequency_penalty=50.0, ignore_eos=True)
    only = replace(never, frequency_penalty=0.0, logit_bias={7: 100.0})
    wishes = {"never twice": (list(PROMPT[:20]), never), "seven": (list(PROMPT[:21]), only)}
    done = run(make_engine(num_blocks=6), wishes)
    assert len(set(done["never twice"].token_ids)) == 40
    assert done["seven"].token_ids == [7] * 40
    plain = run(make_engine(), {"a": wishes["never twice"]})["a"]
    assert plain.token_ids == done["never twice"].token_ids


def test_logprobs_are_the_models_own(make_engine: Make) -> None:
    """Bias and penalties choose another token; its log-probability stays what the model gave it."""
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=256)
    free = run(make_engine(), {"a": (list(PROMPT), params)})["a"].logprobs
    bent = run(make_engine(), {"a": (list(PROMPT), replace(params, logit_bias={7: 100.0}, repetition_penalty=1.5))})[
        "a"
    ]
    assert free is not None
    assert bent.logprobs is not None
    assert bent.token_ids == [7]
    assert bent.logprobs[0].top == free[0].top
    assert bent.logprobs[0].logprob == dict(free[0].top)[7]


@pytest.mark.parametrize("limits", [{}, {"max_step_tokens": 7, "max_running": 2}, {"num_blocks": 8}])
def test_prompt_logprobs_are_those_of_a_plain_forward(make_engine: Make, limits: dict[str, int]) -> None:
    """Also in chunks, beside others and where the prompt is in the cache already."""
    engine = make_engine(**limits)
    run(engine, {"warm": (list(PROMPT), SamplingParams(max_tokens=2))})
    params = SamplingParams(max_tokens=30, temperature=0.0, prompt_logprobs=2, n=2, ignore_eos=True)
    engine.add(Request("other", PROMPT[:9], replace(params, prompt_logprobs=None)))
    engine.add(Request("a", PROMPT, params))
    scored = [output for output in step_all(engine) if output.prompt_logprobs]
    assert [(output.request_id, output.index) for output in scored] == [("a", 0)]
    rows = make_engine().logits(PROMPT)[:, :256].log_softmax(-1)
    assert [item.token_id for item in scored[0].prompt_logprobs] == list(PROMPT[1:])
    for row, item in zip(rows, scored[0].prompt_logprobs, strict=False):
        assert item.logprob == pytest.approx(row[item.token_id].item(), abs=1e-4)
        assert [token for token, _ in item.top] == row.topk(2).indices.tolist()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 0}, "n"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias"),
        ({"logit_bias": {256: 100.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
    ],
)
def test_what_cannot_be_sampled_is_refused(make_engine: Make, change: dict[str, float], param: str) -> None:
    """Ids from 256 are padding rows of the vocabulary, which no bias may bring in."""
    with pytest.raises(RequestError, match=param) as caught:
        make_engine().add(Request("a", PROMPT, replace(HOT, **change)))  # type: ignore[arg-type]
    assert caught.value.param == param
