"""Anthropic's message object and the events of a streamed one, built from an assistant turn as it grows."""

import json
from collections.abc import Sequence
from typing import Any

from engine.core.request import StepOutput
from engine.serve.chat import Dialogue
from engine.serve.completion import Tally
from engine.serve.errors import anthropic_error_body
from engine.serve.session import FAILED

STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use"}


class MessageFormat:
    """Writes one answer as `message` or as `message_start` ... `message_stop`.

    Unless `is_kept`, the answer is not remembered for replay. With `fills_context`, all that it may take of tokens is
    what the context has left, and not what the client allowed.
    """

    def __init__(self, answer_id: str, dialogue: Dialogue, *, is_kept: bool, fills_context: bool) -> None:
        self._about = {"id": answer_id, "type": "message", "role": "assistant", "model": dialogue.service.name}
        self._dialogue = dialogue
        self._is_kept = is_kept
        self._reasons = STOP_REASONS | {"length": "model_context_window_exceeded" if fills_context else "max_tokens"}
        self._turn = dialogue.turn()
        self._blocks = ContentBlocks()
        self._has_begun = False

    def body(self, tallies: Sequence[Tally]) -> bytes:
        (tally,) = tallies
        self._blocks.push(self._turn.push(tally.token_ids, "".join(tally.text)))
        self._blocks.push(self._turn.finish())
        self._remember(tally)
        return json.dumps(
            {
                **self._about,
                "content": self._blocks.content(),
                **self._stop(tally),
                "usage": self._usage(tally),
                "sweq": self._dialogue.evidence(tally),
            }
        ).encode()

    def opening(self) -> bytes:
        """Nothing: the first event tells what the cache held, which the first output knows."""
        return b""

    def event(self, output: StepOutput) -> bytes:
        start = b"" if self._has_begun else self._start(output)
        self._has_begun = True
        deltas = self._turn.push(output.token_ids, output.text)
        if output.finish_reason is not None and output.finish_reason not in FAILED:
            deltas += self._turn.finish()
        return start + self._blocks.push(deltas)

    def ending(self, output: StepOutput) -> bytes:
        self._remember(output)
        about = {"usage": self._usage(output), "sweq": self._dialogue.evidence(output)}
        return (
            self._blocks.close() + _event("message_delta", delta=self._stop(output), **about) + _event("message_stop")
        )

    def closing(self, tallies: Sequence[Tally]) -> bytes:
        """Nothing: the one choice has ended the stream."""
        return b""

    def failure(self, message: str) -> bytes:
        return _event(**anthropic_error_body(500, message))

    def _start(self, output: StepOutput) -> bytes:
        nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**self._about, **nothing, "usage": self._usage(output)})

    def _usage(self, output: StepOutput | Tally) -> dict[str, int]:
        """The API counts tokens read from the cache apart from `input_tokens`. Writing it has no price here, and all
        that was computed is `input_tokens`."""
        return {
            "input_tokens": output.prompt_tokens - output.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": output.cached_tokens,
            "output_tokens": len(self._turn.ids),
        }

    def _stop(self, output: StepOutput | Tally) -> dict[str, str | None]:
        reason = self._turn.finish_reason(output.finish_reason)
        named = "stop_sequence" if output.stop_string is not None else self._reasons[str(reason)]
        return {"stop_reason": named, "stop_sequence": output.stop_string}

    def _remember(self, output: StepOutput | Tally) -> None:
        if self._is_kept:
            self._dialogue.remember(self._turn, output.finish_reason)


class ContentBlocks:
    """The content blocks of one answer. `push` takes a turn's deltas and returns the events that tell them."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._pieces: list[list[str]] = []
        self._is_open = False

    def push(self, deltas: Sequence[dict[str, Any]]) -> bytes:
        return b"".join(self._calls(delta) if "tool_calls" in delta else self._text(delta) for delta in deltas)

    def close(self) -> bytes:
        """The end of the block that is open, if one is."""
        if not self._is_open:
            return b""
        self._is_open = False
        return _event("content_block_stop", index=len(self._blocks) - 1)

    def content(self) -> list[dict[str, Any]]:
        """The blocks so far."""
        return [_whole(block, "".join(pieces)) for block, pieces in zip(self._blocks, self._pieces, strict=True)]

    def _text(self, delta: dict[str, Any]) -> bytes:
        is_new = not self._is_open or self._blocks[-1]["type"] != "text"
        begin = self._begin({"type": "text", "text": ""}) if is_new else b""
        return begin + self._grow("text_delta", "text", delta["content"])

    def _calls(self, delta: dict[str, Any]) -> bytes:
        (call,) = delta["tool_calls"]
        name, fragment = call["function"].get("name"), call["function"]["arguments"]
        if name is None:
            return self._grow("input_json_delta", "partial_json", fragment)
        return self._begin({"type": "tool_use", "id": _tool_use_id(call["id"]), "name": name, "input": {}})

    def _begin(self, block: dict[str, Any]) -> bytes:
        before = self.close()
        self._blocks.append(block)
        self._pieces.append([])
        self._is_open = True
        return before + _event("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _grow(self, kind: str, field: str, piece: str) -> bytes:
        self._pieces[-1].append(piece)
        # Nearly all events are such, and this takes a third of the time of serialising them whole.
        delta = f'{{"type": "{kind}", "{field}": {json.dumps(piece)}}}'
        data = f'{{"type": "content_block_delta", "index": {len(self._blocks) - 1}, "delta": {delta}}}'
        return f"event: content_block_delta\ndata: {data}\n\n".encode()


def _whole(block: dict[str, Any], text: str) -> dict[str, Any]:
    return block | ({"text": text} if block["type"] == "text" else {"input": json.loads(text or "{}")})


def _tool_use_id(call_id: str) -> str:
    return f"toolu_{call_id.removeprefix('call_')}"


def _event(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: {json.dumps({'type': type, **fields})}\n\n".encode()
