"""The text of a growing generation: whole characters only, and nothing that may still turn out to be a stop string."""

from collections.abc import Sequence

from engine.text.tokenizer import Detokenizer


class TextStream:
    """Turns ids into text that is safe to show; what it returns, concatenated, ends before the first stop string.

    `matched` is that stop string once it has appeared; of several that begin at one place, the first of `stop`.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]) -> None:
        self.matched: str | None = None
        self._detokenizer = detokenizer
        self._stop = tuple(text for text in stop if text)
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self.matched is not None

    def push(self, ids: Sequence[int]) -> str:
        """Text that the new ids complete, as far as no stop string can begin in it."""
        return self._release(self._detokenizer.push(ids), final=False)

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return "" if self.stopped else self._release(self._detokenizer.flush(), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            safe, self.matched = min(found, key=lambda hit: hit[0])
        else:
            safe = len(self._held) if final else len(self._held) - self._undecided()
        released, self._held = self._held[:safe], "" if self.stopped else self._held[safe:]
        return released

    def _undecided(self) -> int:
        """Length of the longest suffix of the held text with which some stop string begins."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
