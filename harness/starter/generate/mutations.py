"""Bugs: small edits of a module's source that keep all the rest of its text as it is."""

from dataclasses import dataclass
from itertools import chain

from harness.starter.generate.expression_bugs import EXPRESSION_BUGS
from harness.starter.generate.scope import read_scopes
from harness.starter.generate.statement_bugs import STATEMENT_BUGS

FINDERS = {**EXPRESSION_BUGS, **STATEMENT_BUGS}
KINDS = tuple(FINDERS)


@dataclass(frozen=True)
class Mutation:
    """Characters `start` to `end` of the correct text become `text`."""

    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """The text with the bug."""
        return source[: self.start] + self.text + source[self.end :]


def find_mutations(source: str) -> dict[str, list[Mutation]]:
    """Every bug of every kind that the source has a place for, by kind.

    Each differs from the source and from the others: what two kinds give alike belongs to the first of them.
    """
    scopes = read_scopes(source)
    found: dict[str, list[Mutation]] = {}
    known = {source}
    for kind, finder in FINDERS.items():
        edits = dict.fromkeys(chain.from_iterable(finder(scope) for scope in scopes))
        for edit in edits:
            mutation = Mutation(kind, *edit)
            text = mutation.apply(source)
            if text not in known:
                known.add(text)
                found.setdefault(kind, []).append(mutation)
    return found
