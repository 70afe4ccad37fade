"""Definitions from plain data."""

from collections.abc import Callable, Mapping
from typing import Any

from statemachine.definition import Definition
from statemachine.errors import DefinitionError

_REQUIRED = ("source", "event", "target")
_OPTIONAL = ("action",)


def load(data: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]] | None = None) -> Definition:
    """The definition that `data` describes: `{"initial": ..., "transitions": [{"source": ..., ...}, ...]}`.

    Functions are given by their names in `functions`. Raises `DefinitionError` for missing or unknown keys and names.
    """
    if "initial" not in data:
        raise DefinitionError("key 'initial' is missing")
    definition = Definition(data["initial"])
    for number, entry in enumerate(data.get("transitions", ()), start=1):
        _check_keys(number, entry)
        named = {key: _function(number, entry[key], functions or {}) for key in _OPTIONAL if key in entry}
        definition.add(*(entry[key] for key in _REQUIRED), **named)
    return definition


def _check_keys(number: int, entry: Mapping[str, Any]) -> None:
    for key in _REQUIRED:
        if key not in entry:
            raise DefinitionError(f"transition {number}: key {key!r} is missing")
    for key in entry:
        if key not in _REQUIRED + _OPTIONAL:
            raise DefinitionError(f"transition {number}: unknown key {key!r}")


def _function(number: int, name: str, functions: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name not in functions:
        raise DefinitionError(f"transition {number}: unknown function {name!r}")
    return functions[name]
