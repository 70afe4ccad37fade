"""One vote's paper: the question, the candidate's page fenced as data, and a menu of which one line is the answer.

After what makes grading by a model hold (inspect_ai: fenced data, the last match binds, an answer off the menu is no
grade). Fence and menu are drawn for every vote, so that no page can know them, end the fence or bring the answer along.
"""

import base64
import functools
import hashlib
import random
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pygments.lexers.html import HtmlLexer
from pygments.token import Comment

from harness.agent.model import Message

PROMPTS = Path(__file__).parent / "judge.yaml"
Choice = Literal["yes", "no", "first", "second"]
_SIGNS = string.ascii_uppercase + string.digits
_LABEL = 4


@dataclass(frozen=True)
class Page:
    """What a judge is shown of an answer: its source, and a PNG of it or None."""

    source: str
    picture: bytes | None = None


@dataclass(frozen=True)
class Ballot:
    """`messages` for the judge; `menu` maps each exact last line to what it chooses, in the order shown."""

    messages: tuple[Message, ...]
    menu: dict[str, Choice]
    fence: str

    def read(self, reply: str) -> Choice | None:
        """What the last line of `reply` that is on the menu chooses; None where no line is."""
        chosen = [self.menu[line] for line in map(str.strip, reply.splitlines()) if line in self.menu]
        return chosen[-1] if chosen else None


def make_question(page: Page, question: str, order: Sequence[Choice]) -> Ballot:
    """A ballot for a yes-or-no question about one page, its options in `order`."""
    return _make("single", [page], order, question=question)


def make_pair(first: Page, second: Page, order: Sequence[Choice]) -> Ballot:
    """A ballot on which of two pages is more pleasing, its options in `order`."""
    return _make("pair", [first, second], order)


def choose_order(options: tuple[Choice, Choice], vote: int, seed: int) -> tuple[Choice, ...]:
    """The order of a vote's options: as given, then swapped, then drawn by `seed`, so that no place is favoured."""
    swapped = bool(vote % 2) if vote < 2 else random.Random(seed).random() < 0.5
    return options[::-1] if swapped else options


def strip_comments(source: str) -> str:
    """HTML `source` without comments in markup, scripts and styles: nobody sees them, so they cannot please."""
    tokens = HtmlLexer(stripnl=False, ensurenl=False).get_tokens(source)
    return "".join(text for kind, text in tokens if kind not in Comment or kind in Comment.Preproc)


def prompts_sha256() -> str:
    """Hash of all texts that a judge is asked with, apart from the questions."""
    return hashlib.sha256(PROMPTS.read_bytes()).hexdigest()


def _make(kind: str, pages: Sequence[Page], order: Sequence[Choice], **texts: str) -> Ballot:
    prompts, sources = _read_prompts(), [strip_comments(page.source).strip() for page in pages]
    fence = _draw(lambda: f"=== {secrets.token_hex(16)} ===", sources)
    menu: dict[str, Choice] = {}
    for choice in order:
        menu[_draw(lambda: f"VERDICT {_draw_label()}", [*sources, *menu])] = choice
    pictures = [page.picture for page in pages if page.picture is not None]
    shown = prompts["with_picture" if len(pages) == 1 else "with_pictures"] if len(pictures) == len(pages) else ""
    values = {
        "fence": fence,
        "picture": shown,
        "page": sources[0],
        "other": sources[-1],
        "options": "\n".join(f"{prompts['options'][choice]}\n{line}" for line, choice in menu.items()),
        **texts,
    }
    text = string.Template(prompts[kind]).substitute(values)
    content = [{"type": "text", "text": text}, *map(_show, pictures)] if shown else text
    system = string.Template(prompts["system"]).substitute(fence=fence)
    return Ballot(({"role": "system", "content": system}, {"role": "user", "content": content}), menu, fence)


def _draw(make: Any, sources: Sequence[str]) -> str:
    """Something that stands in none of `sources`."""
    while True:
        drawn: str = make()
        if not any(drawn in source for source in sources):
            return drawn


def _draw_label() -> str:
    return "".join(secrets.choice(_SIGNS) for _ in range(_LABEL))


def _show(picture: bytes) -> Message:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"},
    }


@functools.cache
def _read_prompts() -> dict[str, Any]:
    prompts: dict[str, Any] = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    return prompts
