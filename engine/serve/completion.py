"""Bodies and events of finished and growing completions, in the two OpenAI formats."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.core.request import StepOutput, TokenLogprob
from engine.text.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


@dataclass
class Tally:
    """What one request has produced so far."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, output: StepOutput) -> None:
        self.text.append(output.text)
        self.logprobs.extend(output.logprobs)
        self.prompt_tokens = max(self.prompt_tokens, output.prompt_tokens)
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.completion_tokens += len(output.token_ids)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Format(ABC):
    """Writes one answer. Events are built around a head serialised once, because one is written for every step."""

    stream_object: str
    body_object: str

    def __init__(self, answer_id: str, model: str, tokenizer: Tokenizer, *, logprobs: bool, usage: bool) -> None:
        self._about = {"id": answer_id, "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._usage = usage
        about = json.dumps({**self._about, "object": self.stream_object})
        self._head = "data: " + about[:-1] + ', "choices": '
        self._tail = (', "usage": null' if usage else "") + "}\n\n"

    @abstractmethod
    def choice(self, tally: Tally, finish_reason: str | None) -> dict[str, Any]:
        """The one choice of a whole answer."""

    @abstractmethod
    def delta(self, output: StepOutput) -> dict[str, Any]:
        """The part of a choice that one output adds."""

    def opening(self) -> bytes:
        """Events before the first token."""
        return b""

    def body(self, tally: Tally, finish_reason: str | None) -> bytes:
        """The whole answer as JSON."""
        choice = {"index": 0, **self.choice(tally, finish_reason), "finish_reason": finish_reason}
        about = {**self._about, "object": self.body_object}
        return json.dumps({**about, "choices": [choice], "usage": tally.usage()}).encode()

    def event(self, output: StepOutput) -> bytes:
        """What one output adds, or nothing while its text is held back."""
        if not output.text and not (self._logprobs and output.logprobs):
            return b""
        return self._choice_event(self.delta(output), None)

    def closing(self, tally: Tally, finish_reason: str) -> bytes:
        """The event with the finish reason, the usage where asked for, and the end mark."""
        last = self._choice_event(self.delta(StepOutput("")), finish_reason)
        if self._usage:
            tail = f', "usage": {json.dumps(tally.usage())}}}\n\n'
            last += (self._head + "[]" + tail).encode()
        return last + DONE

    def _choice_event(self, delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choice = {"index": 0, **delta, "finish_reason": finish_reason}
        return (self._head + "[" + json.dumps(choice) + "]" + self._tail).encode()

    def token_text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")


class ChatFormat(Format):
    """`chat.completion` and `chat.completion.chunk`."""

    stream_object = "chat.completion.chunk"
    body_object = "chat.completion"

    def choice(self, tally: Tally, finish_reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(tally.text), "refusal": None}
        return {"message": message, "logprobs": self._content(tally.logprobs)}

    def delta(self, output: StepOutput) -> dict[str, Any]:
        text = {"content": output.text} if output.text else {}
        return {"delta": text, "logprobs": self._content(output.logprobs) if output.logprobs else None}

    def opening(self) -> bytes:
        return self._choice_event({"delta": {"role": "assistant", "content": ""}, "logprobs": None}, None)

    def _content(self, items: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        entries = [
            {**self._entry(item.token_id, item.logprob), "top_logprobs": [self._entry(*pair) for pair in item.top]}
            for item in items
        ]
        return {"content": entries, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token_id)
        return {"token": self.token_text(token_id), "logprob": logprob, "bytes": list(data)}


class CompletionFormat(Format):
    """`text_completion`, the same name for both forms."""

    stream_object = "text_completion"
    body_object = "text_completion"

    def __init__(self, answer_id: str, model: str, tokenizer: Tokenizer, *, logprobs: bool, usage: bool) -> None:
        super().__init__(answer_id, model, tokenizer, logprobs=logprobs, usage=usage)
        self._offset = 0

    def choice(self, tally: Tally, finish_reason: str | None) -> dict[str, Any]:
        return {"text": "".join(tally.text), "logprobs": self._lists(tally.logprobs)}

    def delta(self, output: StepOutput) -> dict[str, Any]:
        return {"text": output.text, "logprobs": self._lists(output.logprobs) if output.logprobs else None}

    def _lists(self, items: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        tokens = [self.token_text(item.token_id) for item in items]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [item.logprob for item in items],
            "top_logprobs": [{self.token_text(i): logprob for i, logprob in item.top} for item in items],
            "text_offset": offsets,
        }
