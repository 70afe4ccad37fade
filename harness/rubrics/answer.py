"""From what the model wrote to the code that is checked."""

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.rubrics.score import Fact

ANSWER_FACTS = frozenset({"answer_chars", "code_chars", "prose_chars", "blocks", "format_ok", "diff_format"})
"""Facts of an answer's form, known without running anything."""

_FENCE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)\n(?P<code>.*?)^ {0,3}(?P=fence)[`~]*[ \t]*$", re.M | re.S
)
_COMMENT = re.compile(r"\s*(//|#|/\*|\*|<!--)")
_DIFF = re.compile(r"^(@@ |--- |\+\+\+ |[+-](?![+-])\s*\S)", re.M)


class Extraction(BaseModel):
    """Which part of an answer is the code, and the name of the file that it becomes.

    `last`: the last fenced block in one of `languages` (or with no language named); `all`: every such block, joined by
    blank lines, for tasks that ask for changes in several files. Without any block the whole answer is the code.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    languages: tuple[str, ...] = Field(min_length=1)
    take: Literal["last", "all"] = "last"
    file: str


@dataclass(frozen=True)
class Extracted:
    """`code` for the checks, the `blocks` it was joined from, and the facts of form."""

    code: str
    blocks: tuple[str, ...]
    facts: dict[str, Fact]


def extract(answer: str, rule: Extraction) -> Extracted:
    """Take the code out of `answer`. Lengths are in characters; prose is all that stands outside of code blocks."""
    text = answer.replace("\r\n", "\n")
    found = [(match["info"].strip().split(" ")[0].lower(), match["code"]) for match in _FENCE.finditer(text)]
    blocks = [code for language, code in found if language in rule.languages or language == ""]
    diffs = [code for language, code in found if language in ("diff", "patch") or _is_diff(code)]
    chosen = blocks or [code for _, code in found] or [text]
    code = chosen[-1] if rule.take == "last" else "\n\n".join(chosen)
    prose = _FENCE.sub("", text).strip() if found else ""
    facts = {
        "answer_chars": Fact(len(text.strip()), "characters of the whole answer"),
        "code_chars": Fact(len(code.strip()), "characters of the extracted code"),
        "prose_chars": Fact(len(prose), _shorten(prose) or "no prose"),
        "blocks": Fact(len(found), "fenced blocks"),
        "format_ok": Fact(bool(blocks), f"a fenced block in {rule.languages[0]}, or none with another language"),
        "diff_format": Fact(bool(diffs), _shorten(diffs[0]) if diffs else "no block reads as a diff"),
    }
    return Extracted(code, (chosen[-1],) if rule.take == "last" else tuple(chosen), facts)


def _is_diff(code: str) -> bool:
    """Whether most lines that say something begin as lines of a unified diff do; comments say nothing here."""
    lines = [line for line in code.splitlines() if line.strip() and not _COMMENT.match(line)]
    marked = [line for line in lines if _DIFF.match(line)]
    return any(line.startswith("@@ ") for line in lines) or (len(lines) > 2 and len(marked) > len(lines) / 2)


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 120 else flat[:117] + "..."
