"""Which JSON schemas the grammar can enforce in full; any other is refused, so that what is produced always validates.

xgrammar passes over keywords that it does not know, and over constraints beside a `$ref`, an `enum` or alternatives.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import RequestError

MAX_DEPTH = 128
"""Objects and arrays inside each other. The time to compile grows faster than their number: 900 take minutes."""

NOT_ENFORCED = {
    "$anchor",
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "contentEncoding",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "not",
    "then",
}
"""Keywords without effect in xgrammar."""

FREE_UP_TO = {"uniqueItems": 0, "minProperties": 1}
"""Keywords whose lower values ask for nothing that could fail: two properties of one name count as two in xgrammar."""

DECIDING = ("$ref", "enum", "const", "anyOf", "oneOf", "allOf")
"""Beside one of these all other constraints are passed over."""

BY_TYPE = {
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"},
    "object": {
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "unevaluatedProperties",
    },
}
CONSTRAINTS = set[str]().union(*BY_TYPE.values(), DECIDING, {"type"})

ONE = ("additionalProperties", "items", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
MANY = ("prefixItems", "anyOf", "oneOf", "allOf")
NAMED = ("properties", "patternProperties", "$defs", "definitions")

SPELLED_OUT = re.compile(r'"|\\\\|\\[xuc]')

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def parse_schema(text: str, param: str) -> Any:
    """The schema in `text`; RequestError that names `param` and the place for what is not JSON or not enforceable.

    `oneOf` counts as `anyOf`: that its alternatives exclude one another, as in a tagged union, is up to the caller.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param}: the schema is not valid JSON: {error}", param=param) from error
    if not isinstance(schema, dict | bool):
        raise RequestError(f"{param}: the schema must be a JSON object, not {type(schema).__name__}", param=param)
    if _is_deeper(schema, MAX_DEPTH):
        raise RequestError(f"{param}: the schema is nested more than {MAX_DEPTH} deep", param=param)
    for place, part in walk_schema(schema, "#"):
        reason = _objection(part)
        if reason is not None:
            raise RequestError(f"{param}: the schema at {place}: {reason}", param=param)
    return schema


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether JSON is nested more than `depth` deep, counted level by level."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def walk_schema(schema: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every subschema that is an object, with its JSON pointer."""
    waiting = [(place, schema)]
    while waiting:
        place, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield place, schema
        waiting += [(f"{place}/{key}", schema[key]) for key in ONE if key in schema]
        for key in MANY:
            parts = schema.get(key, ())
            waiting += [
                (f"{place}/{key}/{at}", part) for at, part in enumerate(parts if isinstance(parts, list) else ())
            ]
        for key in NAMED:
            named = schema.get(key, {})
            waiting += [
                (f"{place}/{key}/{name}", part) for name, part in (named if isinstance(named, dict) else {}).items()
            ]


def _objection(schema: Mapping[str, Any]) -> str | None:
    """Why one subschema cannot be enforced, its parts aside; None when it can."""
    if "type" in schema and not _names_types(schema["type"]):
        return f"type must be one of {', '.join(JSON_TYPES)}, or a list of these"
    ignored = sorted(NOT_ENFORCED & schema.keys())
    ignored += [key for key, free in FREE_UP_TO.items() if key in schema and schema[key] not in range(free + 1)]
    if ignored:
        return f"{ignored[0]} cannot be enforced"
    deciding = [key for key in DECIDING if key in schema]
    if deciding:
        return _objection_beside(schema, deciding[0])
    types = schema.get("type", [])
    types = {types} if isinstance(types, str) else {one for one in types if isinstance(one, str)}
    types |= {"number"} if "integer" in types else set()
    for kind, keywords in BY_TYPE.items():
        found = sorted(keywords & schema.keys())
        if found and kind not in types and (types or kind in ("number", "string")):
            return f'{found[0]} needs "type": "{kind}" beside it'
    objection = _object_objection(schema) or _string_objection(schema)
    return objection or next(filter(None, map(_pattern_objection, _patterns(schema))), None)


def _names_types(value: Any) -> bool:
    named = [value] if isinstance(value, str) else value
    return isinstance(named, list) and bool(named) and all(isinstance(one, str) and one in JSON_TYPES for one in named)


def _objection_beside(schema: Mapping[str, Any], deciding: str) -> str | None:
    others = sorted((CONSTRAINTS & schema.keys()) - {deciding})
    if deciding in ("enum", "const") and others == ["type"]:
        values = schema["enum"] if deciding == "enum" else [schema["const"]]
        if isinstance(values, list) and all(_has_type(value, schema["type"]) for value in values):
            return None
        return f"type excludes a value of {deciding}"
    if others:
        return f"{others[0]} beside {deciding} cannot be enforced; put them together in one subschema"
    if deciding == "allOf" and isinstance(schema["allOf"], list) and len(schema["allOf"]) > 1:
        return "allOf of several subschemas cannot be enforced; merge them into one"
    return None


def _object_objection(schema: Mapping[str, Any]) -> str | None:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if "patternProperties" in schema and "properties" in schema:
        return "patternProperties beside properties cannot be enforced where both fit a name"
    if isinstance(properties, dict) and isinstance(required, list):
        undeclared = [name for name in required if name not in properties]
        return f"required {undeclared[0]!r} must be among the properties" if undeclared else None
    return None


def _string_objection(schema: Mapping[str, Any]) -> str | None:
    ways = [key for key in ("pattern", "format", "minLength", "maxLength") if key in schema]
    if len(ways) > 1 and set(ways) != {"minLength", "maxLength"}:
        return f"{ways[1]} beside {ways[0]} cannot be enforced; say it in one pattern"
    return None


def _patterns(schema: Mapping[str, Any]) -> list[Any]:
    named = schema.get("patternProperties")
    return [schema.get("pattern"), *(named if isinstance(named, dict) else ())]


def _pattern_objection(pattern: Any) -> str | None:
    """xgrammar writes a quote or a backslash that a pattern spells out into the JSON string without escaping it."""
    if isinstance(pattern, str) and SPELLED_OUT.search(pattern):
        return "a pattern with a quotation mark, an escaped backslash or a character code cannot be enforced"
    return None


def _has_type(value: Any, types: Any) -> bool:
    names = types if isinstance(types, list) else [types]
    kinds = tuple(kind for name in names for kind in JSON_TYPES.get(name, ()))
    return isinstance(value, kinds) and (not isinstance(value, bool) or "boolean" in names)
