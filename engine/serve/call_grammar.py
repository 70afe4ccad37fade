"""The language of a forced tool call: one call to one of the given functions, with arguments that validate.

Written as one of xgrammar's structural tags. In both formats properties come in the schema's order, required ones
always and others or not; of a schema that names no properties any are right. What cannot be enforced is refused.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.core.grammar import MAX_WHITESPACE
from engine.core.json_schema import CONSTRAINTS, NOT_ENFORCED, parse_schema, walk_schema
from engine.core.request import Grammar
from engine.errors import RequestError
from engine.text.argument_types import NULLS, is_text, may_be_null, resolve
from engine.text.call_parser import CLOSE_TEXT, OPEN_TEXT
from engine.text.coder_xml import END_FUNCTION, END_PARAMETER, FUNCTION, PARAMETER
from engine.text.tool_calls import CallFormat

Element = dict[str, Any]
"""A node of a structural tag."""

TAGS = [OPEN_TEXT, CLOSE_TEXT, PARAMETER, END_PARAMETER, END_FUNCTION]
"""What no value in XML holds, so that every value ends where the grammar says."""

DEFINITIONS = ("$defs", "definitions")
TOP = {"type", "properties", "required", "additionalProperties"}
"""Constraints on all arguments together that the XML form can keep."""

RAW = ("pattern", "patternProperties", "propertyNames", "minLength", "maxLength")
"""Under these xgrammar 0.2 lets control characters into JSON strings, if they may stand in the text around."""

NAME = re.compile(r"[^\s<>=](?:[^<>=\n]*[^\s<>=])?")
MAX_DEPTH = 8
MAX_LEAST = 256
"""A longer minLength takes the compiler too long."""


def call_grammar(form: CallFormat, schemas: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Grammar:
    """What follows the opening token and its newline in a call to one of `schemas`.

    `schemas` has by function name where its parameters stand in the request, and their JSON schema. RequestError that
    names that place for a schema that cannot be enforced.
    """
    checked = {name: (where, _checked(schema, where)) for name, (where, schema) in schemas.items()}
    if form == "hermes":
        return _grammar("json_structural_tag", [_json_call(name, schema) for name, (_, schema) in checked.items()])
    return _grammar(
        "structural_tag", [_XmlCall(where, schema).element(name) for name, (where, schema) in checked.items()]
    )


def _grammar(kind: Any, calls: Sequence[Element]) -> Grammar:
    tag = {"type": "structural_tag", "format": _any_of(calls)}
    return Grammar(kind, json.dumps(tag, ensure_ascii=False), "tool_choice")


def _checked(schema: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """An object schema whose every required property is declared; RequestError for what no grammar can enforce."""
    if schema.get("type", "object") != "object":
        raise RequestError(f'{where}: a forced call needs "type": "object"', param=where)
    required = schema.get("required", [])
    properties = schema.get("properties")
    if not isinstance(required, list) or not isinstance(properties, Mapping | None):
        raise RequestError(f"{where}: required must be a list and properties an object", param=where)
    missing: dict[str, Any] = {name: {} for name in required if name not in (properties or {})}
    declared = {"properties": {**(properties or {}), **missing}} if properties is not None or missing else {}
    found = {**schema, "type": "object", **declared}
    parse_schema(json.dumps(found), where)
    return found


def _json_call(name: str, schema: Mapping[str, Any]) -> Element:
    arguments = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MAX_WHITESPACE}
    return _sequence([_text(f'{{"name": {json.dumps(name)}, "arguments": '), arguments, _text(f"}}\n{CLOSE_TEXT}")])


class _XmlCall:
    """A call in Qwen3-Coder's XML, where text stands as it is and every other value as JSON."""

    def __init__(self, where: str, schema: Mapping[str, Any]) -> None:
        self._where, self._schema = where, schema

    def element(self, name: str) -> Element:
        """The call to function `name`."""
        others = sorted((CONSTRAINTS | NOT_ENFORCED) & self._schema.keys() - TOP)
        if others:
            raise self._refuse("", f"{others[0]} over all arguments")
        return _sequence([_text(f"{FUNCTION}{name}>\n"), *self._parameters(), _text(f"{END_FUNCTION}\n{CLOSE_TEXT}")])

    def _parameters(self) -> Iterator[Element]:
        properties = self._schema.get("properties")
        if properties is None:
            additional = self._schema.get("additionalProperties", True)
            if isinstance(additional, Mapping) and additional:
                raise self._refuse("", "additionalProperties without properties")
            if additional is not False:
                named = [_text(PARAMETER), {"type": "regex", "pattern": "[A-Za-z0-9_.-]{1,64}"}]
                yield {"type": "star", "content": _sequence([*named, _text(">\n"), *self._ended(_free())])}
            return
        for name, schema in properties.items():
            if not NAME.fullmatch(name):
                raise self._refuse(f"/properties/{name}", "such a name")
            value = self._value(schema, f"/properties/{name}")
            parameter = _sequence([_text(f"{PARAMETER}{name}>\n"), *self._ended(value)])
            yield parameter if name in self._schema.get("required", []) else {"type": "optional", "content": parameter}

    @staticmethod
    def _ended(value: Element) -> list[Element]:
        return [value, _text(f"\n{END_PARAMETER}\n")]

    def _value(self, schema: Any, place: str) -> Element:
        if is_text(schema, self._schema):
            return self._text_value(schema, place)
        refers = '"$ref"' in json.dumps(schema)
        whole = {key: self._schema[key] for key in DEFINITIONS if refers and key in self._schema} | schema
        for at, part in walk_schema(whole, place):
            found = [key for key in RAW if key in part]
            if found:
                raise self._refuse(at, f"{found[0]} inside of JSON")
        return {"type": "json_schema", "json_schema": whole, "max_whitespace_cnt": MAX_WHITESPACE, "excludes": TAGS}

    def _text_value(self, schema: Any, place: str, depth: int = 0) -> Element:
        """The texts that a schema allows among all that the parser takes for text."""
        if schema is False or depth > MAX_DEPTH:
            raise self._refuse(place, "such a schema")
        if not isinstance(schema, Mapping):
            return _free()
        if isinstance(schema.get("$ref"), str):
            return self._text_value(resolve(schema["$ref"], self._schema), place, depth + 1)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                texts = [part for part in self._list(schema[key], place) if is_text(part, self._schema)]
                return _any_of([self._text_value(part, f"{place}/{key}", depth + 1) for part in texts])
        if "enum" in schema or "const" in schema:
            return self._listed(schema, self._list(schema.get("enum", [schema.get("const")]), place), place)
        if "pattern" in schema:
            raise self._refuse(place, "pattern")
        return self._bounded(schema.get("minLength", 0), schema.get("maxLength"), place)

    def _list(self, value: Any, place: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._refuse(place, "what is no list of alternatives")
        return value

    def _bounded(self, least: Any, most: Any, place: str) -> Element:
        if type(least) is not int or least not in range(MAX_LEAST + 1):
            raise self._refuse(place, f"a minLength that is no number up to {MAX_LEAST}")
        if most is not None and (type(most) is not int or most < least):
            raise self._refuse(place, "a maxLength below minLength")
        return _free(least, most)

    def _listed(self, schema: Mapping[str, Any], values: Sequence[Any], place: str) -> Element:
        """Of an enumeration the strings: where there are any, the parser takes every value for one, but for null."""
        texts = [value for value in values if isinstance(value, str) and not any(tag in value for tag in TAGS)]
        if None in values:
            texts = [text for text in texts if not may_be_null(text, schema, self._schema)] + [NULLS[0]]
        if not texts:
            raise self._refuse(place, "an enumeration without a plain string")
        return _any_of([_text(text) for text in texts])

    def _refuse(self, place: str, what: str) -> RequestError:
        message = f"{self._where}: the schema at #{place}: {what} cannot be enforced in this model's form of tool calls"
        return RequestError(f"{message}; leave it out, or leave tool_choice at 'auto'", param=self._where)


def _text(value: str) -> Element:
    return {"type": "const_string", "value": value}


def _sequence(elements: Sequence[Element]) -> Element:
    return {"type": "sequence", "elements": list(elements)}


def _any_of(elements: Sequence[Element]) -> Element:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": list(elements)}


def _free(least: int = 0, most: int | None = None) -> Element:
    """Text of `least` to `most` characters without a tag; the first `least` are none that a tag begins with."""
    rest: Element = {"type": "any_text", "excludes": TAGS}
    if most is not None:
        rest["max_chars"] = most - least
    return _sequence([{"type": "regex", "pattern": f"[^<]{{{least}}}"}, rest]) if least else rest
