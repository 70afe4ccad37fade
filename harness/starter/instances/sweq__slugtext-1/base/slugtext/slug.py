"""Slugs: the part of a page's address that people read."""

import re
import unicodedata
from collections.abc import Container

_WORD = re.compile(r"[a-z0-9]+")


def to_ascii(text: str) -> str:
    """`text` with accents removed; letters without an ASCII base letter are dropped."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return decomposed.encode("ascii", "ignore").decode("ascii")


def slugify(text: str, separator: str = "-", max_length: int | None = None) -> str:
    """Lower-case ASCII words of `text`, joined by `separator`.

    A slug never begins or ends with the separator. With `max_length`, it has at most that many characters.
    An apostrophe inside a word is dropped, so "don't" becomes "dont".
    """
    if max_length is not None and max_length < 1:
        raise ValueError("max_length must be at least 1")
    plain = re.sub(r"(?<=\w)['’](?=\w)", "", text)
    slug = separator.join(_WORD.findall(to_ascii(plain).lower()))
    return slug if max_length is None else slug[:max_length]


def unique_slug(text: str, taken: Container[str], max_length: int | None = None) -> str:
    """A slug of `text` that is not in `taken`: "-2", "-3", ... is added until it is new.

    The number counts against `max_length` too.
    """
    slug = slugify(text, max_length=max_length)
    number = 1
    candidate = slug
    while candidate in taken:
        number += 1
        suffix = f"-{number}"
        room = None if max_length is None else max_length - len(suffix)
        candidate = slugify(text, max_length=room) + suffix
    return candidate
