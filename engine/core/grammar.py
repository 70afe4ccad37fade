"""Structured output: which tokens a grammar lets follow, by xgrammar (Dong et al. 2024, arXiv:2411.15100).

A grammar is compiled once per tokenizer: every token's bytes are run through the automaton beforehand, so that a step
only fills a bit per vocabulary row. A matcher holds nothing of the cache and so outlives preemption; a new one is where
the old was once it has accepted the same ids.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from engine.core.json_schema import parse_schema
from engine.core.request import Grammar
from engine.errors import RequestError
from engine.text.tokenizer import Tokenizer

MAX_TEXT = 1 << 17
"""Characters of a grammar: compiling is not bounded by anything else that the caller sends."""

MAX_WHITESPACE = 32
"""Whitespace characters between two JSON tokens: eight levels of four spaces, and no endless run of blank lines."""

CONTROL = frozenset(range(32)) - frozenset(b"\n\r")
"""Bytes that no JSON text of ours holds; of the control characters, line ends alone may stand between its tokens."""

ANY_OBJECT = '{"type": "object", "additionalProperties": true}'


class GrammarCompiler:
    """Compiled grammars of one tokenizer, the `capacity` latest used of them kept. Thread-safe.

    `vocabulary` is the number of logits that the sampler sees.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, capacity: int = 64) -> None:
        self._tokenizer, self._vocabulary, self._capacity = tokenizer, vocabulary, capacity
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Any:
        """xgrammar's CompiledGrammar; RequestError naming `grammar.param` for one that cannot be used."""
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        # Not under the lock: a compilation takes up to seconds, and nobody should wait for another's.
        compiled = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = compiled
            if len(self._compiled) > self._capacity:
                self._compiled.popitem(last=False)
        return compiled

    def matcher(self, grammar: Grammar) -> "Matcher":
        """A matcher at the start of a completion."""
        return Matcher(self._xgrammar.GrammarMatcher(self.compile(grammar)), self._vocabulary, self._stop_words)

    def _compile(self, grammar: Grammar) -> Any:
        if len(grammar.text) > MAX_TEXT:
            raise RequestError(f"{grammar.param}: has more than {MAX_TEXT} characters", param=grammar.param)
        schema = ANY_OBJECT if grammar.kind == "json_object" else grammar.text
        if grammar.kind == "json_schema":
            parse_schema(schema, grammar.param)
        try:
            if grammar.kind == "regex":
                compiled = self._plain_compiler.compile_regex(grammar.text)
            elif grammar.kind == "ebnf":
                compiled = self._plain_compiler.compile_grammar(grammar.text)
            elif grammar.kind == "structural_tag":
                compiled = self._plain_compiler.compile_structural_tag(grammar.text)
            elif grammar.kind == "json_structural_tag":
                compiled = self._json_compiler.compile_structural_tag(grammar.text)
            else:
                compiled = self._json_compiler.compile_json_schema(schema, max_whitespace_cnt=MAX_WHITESPACE)
        except Exception as error:  # the library raises RuntimeError, and its binding others for odd text
            raise RequestError(
                f"{grammar.param}: this {grammar.kind} does not compile: {_reason(error)}", param=grammar.param
            ) from error
        first = Matcher(self._xgrammar.GrammarMatcher(compiled), self._vocabulary, self._stop_words)
        if first.is_dead:
            raise RequestError(f"{grammar.param}: no text belongs to this {grammar.kind}", param=grammar.param)
        return compiled

    @cached_property
    def _xgrammar(self) -> ModuleType:
        # Imported at the first grammar, because it loads transformers, which takes seconds.
        import xgrammar

        return xgrammar

    @cached_property
    def _plain_compiler(self) -> Any:
        return self._compiler_over(self._table)

    @cached_property
    def _json_compiler(self) -> Any:
        # xgrammar 0.2 lets raw control characters into strings of bounded length, where JSON has none.
        return self._compiler_over([b"" if CONTROL.intersection(text) else text for text in self._table])

    @cached_property
    def _table(self) -> list[bytes]:
        # Special tokens stand for no text: without bytes they can only be stop tokens.
        return [self._tokenizer.token_bytes(token, special=False) for token in range(self._vocabulary)]

    def _compiler_over(self, table: list[bytes]) -> Any:
        info = self._xgrammar.TokenizerInfo(
            table, self._xgrammar.VocabType.RAW, vocab_size=self._vocabulary, stop_token_ids=self._stop_ids
        )
        return self._xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)

    @cached_property
    def _stop_ids(self) -> list[int]:
        return sorted(token for token in self._tokenizer.stop_ids if token < self._vocabulary)

    @cached_property
    def _stop_words(self) -> Tensor:
        bits = torch.zeros(-(-self._vocabulary // 32) * 32, dtype=torch.int64)
        bits[self._stop_ids] = 1
        return (bits.view(-1, 32) << torch.arange(32)).sum(-1).to(torch.int32)


class Matcher:
    """Where one completion stands in its grammar after `accepted` generated ids."""

    def __init__(self, matcher: Any, vocabulary: int, stop_words: Tensor) -> None:
        self._matcher, self._vocabulary, self._stop_words = matcher, vocabulary, stop_words
        # One bit per token, int32 [1, ceil(vocab / 32)], on CPU.
        self._words = torch.empty_like(stop_words)[None]
        self.accepted = 0
        self._fill()

    @property
    def is_dead(self) -> bool:
        """Whether no token may follow and the text is not complete."""
        return not self._continues and not self._matcher.is_completed() and not self._matcher.is_terminated()

    @property
    def is_finished(self) -> bool:
        """Whether the text belongs to the grammar and nothing but its end can follow."""
        return not self._continues and not self.is_dead

    def accept(self, tokens: Sequence[int]) -> None:
        """Take in the next generated ids; ValueError for one that does not belong to the grammar."""
        for token in tokens:
            if not self._matcher.accept_token(token):
                raise ValueError(f"token {token} does not belong to the grammar")
            self.accepted += 1
        if tokens:
            self._fill()

    def apply(self, logits: Tensor) -> None:
        """Set the logits [vocab] of tokens that may not follow to -inf, in place; ValueError when none may."""
        if self.is_dead:
            raise ValueError("the grammar lets no token of this vocabulary follow")
        bits = (self._words[0, :, None].to(logits.device) >> torch.arange(32, device=logits.device)) & 1
        logits.masked_fill_(bits.flatten()[: self._vocabulary] == 0, -torch.inf)

    def _fill(self) -> None:
        if self._matcher.is_terminated():
            self._words.zero_()
        else:
            self._words.fill_(-1)
            self._matcher.fill_next_token_bitmask(self._words)
        self._continues = bool((self._words[0] & ~self._stop_words).any())


def _reason(error: Exception) -> str:
    """The library's message without its time, source file and line."""
    first = str(error).strip().partition("\n")[0]
    return first.rpartition(".cc:")[2].partition(": ")[2] or first
