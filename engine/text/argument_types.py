"""Argument values as a model writes them, brought to the JSON type that the tool's schema declares."""

import ast
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 8

KINDS: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}

NULLS = ("null", "None")
"""How models write the value that is none, in JSON and in Python."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def is_text(schema: Mapping[str, Any] | None, root: Mapping[str, Any]) -> bool:
    """Whether a parameter's value is the text that stands there, but for what `may_be_null` says."""
    types = _types(schema, root)
    return "string" in types or not types


def may_be_null(text: str, schema: Mapping[str, Any] | None, root: Mapping[str, Any]) -> bool:
    """Whether a text parameter whose value begins with `text` may yet turn out to be null."""
    begun = text.strip()
    return any(word.startswith(begun) for word in NULLS) and "null" in _types(schema, root)


def to_json(raw: str, schema: Mapping[str, Any] | None, root: Mapping[str, Any]) -> str:
    """JSON text of a raw parameter value.

    `schema` is the parameter's own, None where the tool declares none, and `root` the schema that its `$ref`s point
    into. A value that is not of a declared type stays a string, and so does every value of a parameter that may be a
    string or has no declared type; only `null` is told from the string where both are allowed.
    """
    types = _types(schema, root)
    if "string" in types:
        return "null" if "null" in types and raw.strip() in NULLS else dump(raw)
    found, value = _read(raw.strip(), types) if types else (False, None)
    return dump(value if found else raw)


def parse_json(text: str, *, strict: bool = True) -> Any:
    """What JSON text says. ValueError for text that is none, NaN and infinities included; RecursionError.

    A number beyond the range of floats becomes the outermost one. `strict` False lets control characters into strings.
    """
    return json.loads(text, strict=strict, parse_float=_to_float, parse_constant=_refuse_constant)


def dump(value: Any) -> str:
    """JSON text with characters as they are, escaped only where UTF-8 has no form for them (lone surrogates).

    A string's text is that of its characters, one by one, so that pieces of a string may be written apart.
    """
    return LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """Names of the JSON types that a schema allows; empty when it does not say."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return set()
    if isinstance(schema.get("$ref"), str):
        return _types(resolve(schema["$ref"], root), root, depth + 1)
    declared = schema.get("type")
    if isinstance(declared, str):
        return {declared}
    if isinstance(declared, list):
        return {name for name in declared if isinstance(name, str)}
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    types = {_type_of(value) for value in values}
    for key in ("anyOf", "oneOf", "allOf"):
        for branch in schema[key] if isinstance(schema.get(key), list) else []:
            types |= _types(branch, root, depth + 1)
    return types


def resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """What a `#/...` pointer (RFC 6901) names inside `root`, or None."""
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _type_of(value: Any) -> str:
    return next((name for name, kinds in KINDS.items() if isinstance(value, kinds)), "string")


def _read(raw: str, wanted: set[str]) -> tuple[bool, Any]:
    """Whether `raw` is a value of a wanted type, as JSON or as a Python literal (True, None, single quotes)."""
    for parse in (parse_json, ast.literal_eval):
        try:
            value = parse(raw)
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if "integer" in wanted and isinstance(value, float) and value.is_integer():
            return True, int(value) if "number" not in wanted else value
        if any(_is(value, name) for name in wanted):
            return True, value
    return False, None


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, KINDS.get(name, ()))


def _to_float(digits: str) -> float:
    return max(-sys.float_info.max, min(sys.float_info.max, float(digits)))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
