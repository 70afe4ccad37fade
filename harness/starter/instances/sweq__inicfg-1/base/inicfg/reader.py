"""Reading configuration."""

import re
from os import PathLike
from pathlib import Path

from inicfg.errors import ConfigError
from inicfg.values import Value, parse_value

Section = dict[str, Value | list[Value]]
_COMMENT = "#;"
_KEY = re.compile(r"[A-Za-z_][\w.-]*")


def load(path: str | PathLike[str]) -> dict[str, Section]:
    """Read the file at `path` (UTF-8); see `loads`."""
    return loads(Path(path).read_text(encoding="utf-8"))


def loads(text: str) -> dict[str, Section]:
    """Sections by name, each a dictionary of values; keys before the first section are in section "".

    Raises `ConfigError` for a line that cannot be read, and for a key or section given twice.
    """
    sections: dict[str, Section] = {}
    current = sections.setdefault("", {})
    for number, raw in enumerate(text.splitlines(), start=1):
        line = strip_comment(raw).strip()
        if not line:
            continue
        if line.startswith("["):
            name = _section_name(line, number)
            if name in sections:
                raise ConfigError(f"section {name!r} given twice", number)
            current = sections[name] = {}
            continue
        key, value = _entry(line, number)
        if key in current:
            raise ConfigError(f"key {key!r} given twice", number)
        current[key] = value
    return sections


def strip_comment(line: str) -> str:
    """`line` without its comment."""
    for mark in _COMMENT:
        line = line.split(mark)[0]
    return line


def _section_name(line: str, number: int) -> str:
    if not line.endswith("]") or not line[1:-1].strip():
        raise ConfigError(f"not a section header: {line!r}", number)
    return line[1:-1].strip()


def _entry(line: str, number: int) -> tuple[str, Value | list[Value]]:
    key, equals, value = (part.strip() for part in line.partition("="))
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(f"expected 'key = value', found {line!r}", number)
    try:
        return key, parse_value(value)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}", number) from error
