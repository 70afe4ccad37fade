"""Own-token replay: prompts that hold earlier answers token for token as this engine generated them.

A client sends an assistant turn back as text and parsed calls. Rendered and tokenized anew it is often not what the
model wrote (white space before a call, `{"a":1}` for `{"a": 1}`, a word split otherwise), and from the first token that
differs the cache is of no use. So the ids of every answer are remembered under what the client was told, in a form that
survives re-serialisation; where a later request brings the turn back, the template renders a placeholder for it, and
the ids take the placeholder's place. A turn that was edited is not found, and is tokenized like any other text.
"""

import json
import secrets
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from engine.errors import RequestError
from engine.text.chat import ChatTemplate
from engine.text.messages import normalize
from engine.text.tokenizer import Tokenizer

DEFAULT_BYTES = 64 << 20
"""Enough for about 15 million generated tokens."""

ENTRY_BYTES = 400
"""What one turn costs beside its ids, about."""

REASONING_END = "</think>"


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation as ids. Of its assistant turns, `replayed_turns` are the ids that were generated
    (`replayed_tokens` of them) and `tokenized_turns` were tokenized from their text."""

    ids: list[int]
    replayed_turns: int = 0
    replayed_tokens: int = 0
    tokenized_turns: int = 0


@dataclass(frozen=True)
class Remembered:
    """Ids of one turn by the digest of the prompt that they followed, the latest last; never empty."""

    by_prompt: Mapping[bytes, bytes]

    def after(self, prompt: bytes) -> list[int]:
        """The ids that followed this prompt, or the latest that followed another."""
        data = self.by_prompt.get(prompt) or list(self.by_prompt.values())[-1]
        return array("I", data).tolist()


class TurnHistory:
    """Generated ids by assistant turn, the latest used within `max_bytes`. Thread-safe.

    The same turn may have been generated with other ids elsewhere, so each is kept with the digest of the prompt that
    it followed, and the one that followed the same prompt is preferred. The counts are of all prompts built so far.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.bytes = 0
        self.replayed_turns = self.replayed_tokens = self.tokenized_turns = 0
        self._max_bytes = max_bytes
        self._turns: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._prompts: dict[bytes, list[bytes]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._turns)

    def remember(self, message: Mapping[str, Any], ids: Sequence[int], prompt_ids: Sequence[int]) -> None:
        """Keep the `ids` that followed `prompt_ids` and were returned to the client as `message`.

        `ids` end before the token that ended the turn. Turns that hold reasoning are not kept, because templates leave
        reasoning out of history.
        """
        if REASONING_END in (message.get("content") or ""):
            return
        try:
            turn = turn_key(normalize([message])[0])
        except RequestError:
            # No request can bring it back, as one whose arguments are nested too deep.
            return
        prompt = _PromptDigest(prompt_ids).digest()
        data = array("I", ids).tobytes()
        with self._lock:
            self._forget(turn, prompt)
            self._turns[turn, prompt] = data
            self._prompts.setdefault(turn, []).append(prompt)
            self.bytes += len(data) + ENTRY_BYTES
            while self.bytes > self._max_bytes:
                self._forget(*next(iter(self._turns)))

    def find(self, message: Mapping[str, Any]) -> "Remembered | None":
        """What is remembered for a normalised assistant message."""
        turn = turn_key(message)
        with self._lock:
            prompts = self._prompts.get(turn, ())
            for prompt in prompts:
                self._turns.move_to_end((turn, prompt))
            return Remembered({prompt: self._turns[turn, prompt] for prompt in prompts}) if prompts else None

    def count(self, prompt: Prompt) -> None:
        """Add a prompt's turns to the counts."""
        with self._lock:
            self.replayed_turns += prompt.replayed_turns
            self.replayed_tokens += prompt.replayed_tokens
            self.tokenized_turns += prompt.tokenized_turns

    def _forget(self, turn: bytes, prompt: bytes) -> None:
        data = self._turns.pop((turn, prompt), None)
        if data is None:
            return
        self.bytes -= len(data) + ENTRY_BYTES
        self._prompts[turn].remove(prompt)
        if not self._prompts[turn]:
            del self._prompts[turn]


def build_prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    history: TurnHistory,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    most: int | None = None,
) -> Prompt:
    """Ids of the rendered conversation and its generation prompt, with remembered turns put in as generated.

    Raises RequestError as `ChatTemplate.render` does, and as `Tokenizer.encode` does for a text beyond `most` tokens.
    """
    turns = normalize(messages)
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    known = {i: found for i in answers if (found := history.find(turns[i])) is not None}
    parts = _render_around(template, turns, known.keys(), tools) if known else None
    if parts is None:
        ids = tokenizer.encode(template.render(turns, tools), affixes=False, most=most)
        prompt = Prompt(ids, tokenized_turns=len(answers))
    else:
        prompt = _join(tokenizer, list(known.values()), parts, len(answers) - len(known), most)
    history.count(prompt)
    return prompt


def turn_key(message: Mapping[str, Any]) -> bytes:
    """Digest of what a normalised assistant message says: its text without white space around it, and its calls with
    numbers and key order as any JSON library may write them."""
    calls = [
        [call["function"]["name"], _plain(call["function"]["arguments"])] for call in message.get("tool_calls") or []
    ]
    canonical = json.dumps([message["content"].strip(), calls], sort_keys=True)
    return blake2b(canonical.encode(), digest_size=16).digest()


def _render_around(
    template: ChatTemplate,
    turns: list[dict[str, Any]],
    known: Set[int],
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[str] | None:
    """The rendered text before, between and behind the turns `known`; None when the template does not put an answer
    right behind its generation prompt, so that the ids would not stand where they were generated."""
    # Nobody can guess it and so move a turn by writing it into a message.
    mark = f"[{secrets.token_hex(16)}]"
    rendered = template.render(
        [{"role": "assistant", "content": mark} if i in known else turn for i, turn in enumerate(turns)], tools
    )
    parts = rendered.split(mark)
    lead = template.generation_prompt
    if len(parts) != len(known) + 1 or not lead or not all(part.endswith(lead) for part in parts[:-1]):
        return None
    return parts


def _join(
    tokenizer: Tokenizer, known: Sequence[Remembered], parts: Sequence[str], tokenized: int, most: int | None
) -> Prompt:
    ids = tokenizer.encode(parts[0], affixes=False, most=most)
    digest = _PromptDigest(ids)
    tokens = 0
    for turn, behind in zip(known, parts[1:], strict=True):
        generated = turn.after(digest.digest())
        new = generated + tokenizer.encode(behind, affixes=False, most=most)
        digest.update(new)
        ids += new
        tokens += len(generated)
    return Prompt(ids, len(known), tokens, tokenized)


class _PromptDigest:
    """A digest of ids that grow."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._hash = blake2b(digest_size=16)
        self.update(ids)

    def update(self, ids: Sequence[int]) -> None:
        self._hash.update(array("I", ids).tobytes())

    def digest(self) -> bytes:
        return self._hash.digest()


def _plain(value: Any) -> Any:
    """JSON with whole floats as integers: JavaScript writes 1.0 as 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
