"""A response and its events in the form of `/v1/responses`."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.core.request import StepOutput
from engine.serve.chat import Dialogue
from engine.serve.completion import Tally
from engine.serve.responses.items_out import EventWriter, OutputItems


class ResponsesFormat:
    """Writes one answer (an AnswerForm).

    `asked` are the request's fields that the response repeats. `keep` gets the whole response and its JSON before the
    client sees the end of it.
    """

    def __init__(
        self,
        answer_id: str,
        dialogue: Dialogue,
        asked: Mapping[str, Any],
        keep: Callable[[dict[str, Any], bytes], None],
    ) -> None:
        self._about = {
            "id": answer_id,
            "object": "response",
            "created_at": int(time.time()),
            "model": dialogue.service.name,
        }
        self._dialogue = dialogue
        self._asked = asked
        self._keep = keep
        self._turn = dialogue.turn()
        self._events = EventWriter()
        self._output = OutputItems(self._events)

    def body(self, tallies: Sequence[Tally]) -> bytes:
        tally = tallies[0]
        self._push(tally.token_ids, "".join(tally.text))
        self._finish(tally.finish_reason)
        return self._ended(tally)[1]

    def opening(self) -> bytes:
        response = {"response": self._response("in_progress")}
        return (self._events.write("created", response) + self._events.write("in_progress", response)).encode()

    def event(self, output: StepOutput) -> bytes:
        return self._push(output.token_ids, output.text).encode()

    def ending(self, output: StepOutput) -> bytes:
        return self._finish(output.finish_reason).encode()

    def closing(self, tallies: Sequence[Tally]) -> bytes:
        response, data = self._ended(tallies[0])
        return self._events.write_json(response["status"], f'"response": {data.decode()}').encode()

    def failure(self, message: str) -> bytes:
        closed = self._output.close("incomplete")
        response = self._response("failed", error={"code": "server_error", "message": message})
        return (closed + self._events.write("failed", {"response": response})).encode()

    def _push(self, ids: Sequence[int], text: str) -> str:
        return "".join(self._output.add(delta) for delta in self._turn.push(ids, text))

    def _finish(self, reason: str | None) -> str:
        rest = "".join(self._output.add(delta) for delta in self._turn.finish())
        self._dialogue.remember(self._turn, reason)
        return rest + self._output.close("incomplete" if reason == "length" else "completed")

    def _ended(self, tally: Tally) -> tuple[dict[str, Any], bytes]:
        is_cut = tally.finish_reason == "length"
        response = self._response(
            "incomplete" if is_cut else "completed",
            completed_at=None if is_cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            usage=_usage(tally),
            sweq=self._dialogue.evidence(tally),
        )
        data = json.dumps(response).encode()
        self._keep(response, data)
        return response, data

    def _response(self, status: str, **known: Any) -> dict[str, Any]:
        empty = {"error": None, "incomplete_details": None, "completed_at": None, "usage": None}
        return {**self._about, "status": status, "output": self._output.items, **self._asked, **empty, **known}


def _usage(tally: Tally) -> dict[str, Any]:
    """What the cache did not hold of the prompt is written to it."""
    prompt, completion = tally.prompt_tokens, len(tally.token_ids)
    cached = tally.cached_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": prompt - cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
