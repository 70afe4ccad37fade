"""Chat completions: the prompt of a conversation, and its answers in the wire form, with tool calls and replay."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.request import StepOutput, TokenLogprob
from engine.serve.completion import Format, Tally
from engine.serve.fields import ChatFields
from engine.serve.service import Service
from engine.serve.session import FAILED
from engine.serve.tool_choice import ToolPlan, plan_tools
from engine.serve.turn import Turn
from engine.text.history import Prompt, build_prompt


@dataclass(frozen=True)
class Dialogue:
    """What one chat request asks: its prompt, how its tools shape the answer, and where the answer is remembered.

    `lead` are ids put behind the prompt that count as the answer's beginning.
    """

    service: Service
    prompt: Prompt
    plan: ToolPlan
    lead: Sequence[int]

    @classmethod
    def open(cls, service: Service, fields: ChatFields) -> "Dialogue":
        """Render the conversation; RequestError for what cannot be served as asked."""
        plan = plan_tools(service, fields.tools, fields.tool_choice, fields.parallel_tool_calls)
        return cls.render(service, fields.messages, plan)

    @classmethod
    def render(cls, service: Service, messages: Sequence[Mapping[str, Any]], plan: ToolPlan) -> "Dialogue":
        """The dialogue of chat `messages` whose tools are planned."""
        template = service.chat_template()
        prompt = build_prompt(template, service.tokenizer, service.history, messages, plan.tools, service.most_tokens)
        return cls(service, prompt, plan, plan.lead(service.tokenizer))

    @property
    def prompt_ids(self) -> list[int]:
        return [*self.prompt.ids, *self.lead]

    def turn(self) -> Turn:
        """A fresh answer."""
        return Turn(self.plan.reader(self.service.tokenizer), one_call=self.plan.one_call)

    def remember(self, turn: Turn, finish_reason: str | None) -> None:
        """Keep the ids of a finished turn for replay, where they say exactly what the client was told."""
        ids, tokenizer = turn.ids, self.service.tokenizer
        if finish_reason == "stop" and ids and ids[-1] in tokenizer.stop_ids:
            ids = ids[:-1]
        # Behind a stop string there may be ids whose text the client never saw.
        if turn.is_whole and ids and tokenizer.decode(ids) == turn.text:
            self.service.history.remember(turn.message, [*self.lead, *ids], self.prompt.ids)

    def evidence(self, output: StepOutput | Tally) -> dict[str, Any]:
        """The `sweq` field: what the cache held of the prompt and where, and what was replayed."""
        return {
            "cached_tokens": output.cached_tokens,
            "cache_source": output.cache_source,
            "replayed_turns": self.prompt.replayed_turns,
            "replayed_tokens": self.prompt.replayed_tokens,
            "tokenized_turns": self.prompt.tokenized_turns,
        }


class ChatFormat(Format):
    """`chat.completion` and `chat.completion.chunk`."""

    stream_object = "chat.completion.chunk"
    body_object = "chat.completion"

    def __init__(self, answer_id: str, dialogue: Dialogue, *, choices: int, logprobs: bool, usage: bool) -> None:
        service = dialogue.service
        super().__init__(answer_id, service.name, service.tokenizer, choices=choices, logprobs=logprobs, usage=usage)
        self._dialogue = dialogue
        self._turns = [dialogue.turn() for _ in range(choices)]

    def choice(self, index: int, tally: Tally) -> dict[str, Any]:
        turn = self._turns[index]
        turn.push(tally.token_ids, "".join(tally.text))
        turn.finish()
        self._dialogue.remember(turn, tally.finish_reason)
        return {
            "message": turn.message,
            "logprobs": self._content(tally.logprobs),
            "finish_reason": turn.finish_reason(tally.finish_reason),
        }

    def extra(self, tallies: Sequence[Tally]) -> dict[str, Any]:
        return {"sweq": self._dialogue.evidence(tallies[0])}

    def event(self, output: StepOutput) -> bytes:
        turn = self._turns[output.index]
        deltas = turn.push(output.token_ids, output.text)
        if output.finish_reason is not None and output.finish_reason not in FAILED:
            deltas += turn.finish()
        logprobs = self._content(output.logprobs) if output.logprobs else None
        if logprobs and not deltas:
            deltas = [{}]
        events = []
        for delta in deltas:
            if logprobs is None and delta.keys() == {"content"}:
                events.append(self._text_event(output.index, '"delta": {"content": ', delta["content"], "}"))
                continue
            events.append(self._choice_event(output.index, {"delta": delta, "logprobs": logprobs}, None))
            logprobs = None
        return b"".join(events)

    def ending(self, output: StepOutput) -> bytes:
        turn = self._turns[output.index]
        self._dialogue.remember(turn, output.finish_reason)
        extra = f', "sweq": {json.dumps(self._dialogue.evidence(output))}'
        reason = turn.finish_reason(output.finish_reason)
        return self._choice_event(output.index, {"delta": {}, "logprobs": None}, reason, extra)

    def opening(self) -> bytes:
        delta = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return b"".join(self._choice_event(index, delta, None) for index in range(self._choices))

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
