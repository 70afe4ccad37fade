"""Driving an engine to the end, for the tests beside this file; its name is unlike any conftest's."""

from engine.core.engine import Engine
from engine.core.request import Completion, Request, SamplingParams


def run(engine: Engine, wishes: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, Completion]:
    """Drive the engine until every wish is answered."""
    for name, (ids, params) in wishes.items():
        engine.add(Request(name, tuple(ids), params))
    done = {name: Completion([], "", "error", len(ids), logprobs=[]) for name, (ids, _) in wishes.items()}
    while engine.has_work:
        for output in engine.step():
            completion = done[output.request_id]
            completion.token_ids += output.token_ids
            completion.text += output.text
            completion.cached_tokens, completion.error = output.cached_tokens, output.error
            completion.logprobs = [*(completion.logprobs or []), *output.logprobs]
            completion.finish_reason = output.finish_reason or completion.finish_reason
    return done
