"""Bodies and events of finished and growing completions."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.cache.snapshots import Source
from engine.core.request import StepOutput, TokenLogprob
from engine.serve.errors import error_body
from engine.text.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"


@dataclass
class Tally:
    """What one choice of a request has produced so far."""

    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_source: Source | None = None
    finish_reason: str | None = None
    prompt_logprobs: Sequence[TokenLogprob] = ()
    stop_string: str | None = None

    def add(self, output: StepOutput) -> None:
        self.token_ids += output.token_ids
        self.text.append(output.text)
        if output.logprobs:
            self.logprobs.extend(output.logprobs)
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        self.prompt_tokens = max(self.prompt_tokens, output.prompt_tokens)
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.cache_source = output.cache_source or self.cache_source
        self.finish_reason = output.finish_reason or self.finish_reason
        self.stop_string = output.stop_string or self.stop_string


def usage(tallies: Sequence[Tally]) -> dict[str, Any]:
    """The prompt counts once, as the first choice found it; the others read it from the cache anyway."""
    first, completion = tallies[0], sum(len(tally.token_ids) for tally in tallies)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
    }


class Format(ABC):
    """Writes one answer. Events are built around a head serialised once, because one is written for every step."""

    stream_object: str
    body_object: str

    def __init__(
        self,
        answer_id: str,
        model: str,
        tokenizer: Tokenizer,
        *,
        choices: int,
        logprobs: bool,
        usage: bool,
        echo: Sequence[int] = (),
    ) -> None:
        self._choices = choices
        self._echo = echo
        self._about = {"id": answer_id, "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._usage = usage
        about = json.dumps({**self._about, "object": self.stream_object})
        self._head = "data: " + about[:-1] + ', "choices": '
        self._tail = (', "usage": null' if usage else "") + "}\n\n"

    @abstractmethod
    def choice(self, index: int, tally: Tally) -> dict[str, Any]:
        """One choice of a whole answer."""

    def opening(self) -> bytes:
        """Events before the first token."""
        return b""

    def body(self, tallies: Sequence[Tally]) -> bytes:
        """The whole answer as JSON."""
        choices = [
            {"index": index, "finish_reason": tally.finish_reason, **self.choice(index, tally)}
            for index, tally in enumerate(tallies)
        ]
        about = {**self._about, "object": self.body_object}
        return json.dumps({**about, "choices": choices, "usage": usage(tallies), **self.extra(tallies)}).encode()

    def extra(self, tallies: Sequence[Tally]) -> dict[str, Any]:
        """Fields of our own at the top of a whole answer."""
        return {}

    @abstractmethod
    def event(self, output: StepOutput) -> bytes:
        """What one output adds, or nothing while its text is held back."""

    @abstractmethod
    def ending(self, output: StepOutput) -> bytes:
        """The event with a choice's finish reason."""

    def closing(self, tallies: Sequence[Tally]) -> bytes:
        """The usage where asked for, and the end mark."""
        if not self._usage:
            return DONE
        return (self._head + f'[], "usage": {json.dumps(usage(tallies))}}}\n\n').encode() + DONE

    def failure(self, message: str) -> bytes:
        """The event that ends a stream whose request failed after its beginning."""
        return f"data: {json.dumps(error_body(500, message))}\n\n".encode()

    def _choice_event(self, index: int, delta: dict[str, Any], finish_reason: str | None, extra: str = "") -> bytes:
        choice = {"index": index, **delta, "finish_reason": finish_reason}
        return (self._head + "[" + json.dumps(choice) + "]" + extra + self._tail).encode()

    def _text_event(self, index: int, before: str, text: str, behind: str = "") -> bytes:
        """What `_choice_event` writes for text without log-probabilities, at a third of the time: nearly all events
        are such. `before` and `behind` are the JSON around the text."""
        choice = f'{{"index": {index}, {before}{json.dumps(text)}{behind}, "logprobs": null, "finish_reason": null}}'
        return f"{self._head}[{choice}]{self._tail}".encode()

    def token_text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")


class CompletionFormat(Format):
    """`text_completion`, the same name for both forms. Each choice begins with the prompt `echo`, if there is one."""

    stream_object = "text_completion"
    body_object = "text_completion"

    def __init__(self, *about: Any, **options: Any) -> None:
        super().__init__(*about, **options)
        self._offsets = [0] * self._choices
        self._scores: Sequence[TokenLogprob] = ()

    def choice(self, index: int, tally: Tally) -> dict[str, Any]:
        self._scores = self._scores or tally.prompt_logprobs
        prompt = self._prompt(index)
        return {
            "text": "".join([self._prompt_text(), *tally.text]),
            "logprobs": self._lists(index, [*prompt, *tally.logprobs]),
        }

    def opening(self) -> bytes:
        """The prompt without its log-probabilities, which come with each choice's first token."""
        if not self._echo:
            return b""
        delta = {"text": self._prompt_text(), "logprobs": None}
        return b"".join(self._choice_event(index, delta, None) for index in range(self._choices))

    def _delta(self, output: StepOutput) -> dict[str, Any]:
        self._scores = self._scores or output.prompt_logprobs
        items = [*self._prompt(output.index), *output.logprobs] if output.logprobs else []
        return {"text": output.text, "logprobs": self._lists(output.index, items) if items else None}

    def _prompt_text(self) -> str:
        return self._tokenizer.decode(self._echo)

    def _prompt(self, index: int) -> list[TokenLogprob]:
        """The echoed prompt, if this choice has not had it yet. Nothing precedes its first token: it has no number."""
        if not self._echo or self._offsets[index]:
            return []
        return [TokenLogprob(self._echo[0], math.nan), *self._scores]

    def event(self, output: StepOutput) -> bytes:
        if not self._logprobs or not output.logprobs:
            return self._text_event(output.index, '"text": ', output.text) if output.text else b""
        return self._choice_event(output.index, self._delta(output), None)

    def ending(self, output: StepOutput) -> bytes:
        return self._choice_event(output.index, self._delta(StepOutput("")), output.finish_reason)

    def _lists(self, index: int, items: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        tokens = [self.token_text(item.token_id) for item in items]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [None if math.isnan(item.logprob) else item.logprob for item in items],
            "top_logprobs": [
                None if math.isnan(item.logprob) else {self.token_text(i): logprob for i, logprob in item.top}
                for item in items
            ],
            "text_offset": offsets,
        }
