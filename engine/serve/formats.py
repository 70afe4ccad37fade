"""The fields of a request that ask for structured output, as the grammar that the engine follows."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.core.request import Grammar
from engine.errors import RequestError


class JsonSchema(BaseModel):
    """OpenAI's `response_format.json_schema`. `strict` changes nothing: every schema here is followed exactly."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str | None = None
    strict: bool | None = None
    definition: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """What the text must be; None for any text. RequestError when the schema is missing."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_object", param="response_format")
        if self.json_schema is None:
            raise RequestError(
                'response_format.json_schema is missing; type "json_schema" needs it',
                param="response_format.json_schema",
            )
        return Grammar("json_schema", json.dumps(self.json_schema.definition), param="response_format")


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`: one of `json` (a schema), `json_object`, `regex`, `grammar` (EBNF) and `choice`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    definition: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    grammar_text: Annotated[str | None, Field(alias="grammar")] = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None

    def grammar(self) -> Grammar:
        """The one form that is asked for; RequestError when there is none or several."""
        found = self._found()
        if len(found) != 1:
            raise RequestError(
                "structured_outputs: exactly one of json, json_object, regex, grammar and choice is needed",
                param="structured_outputs",
            )
        return found[0]

    def _found(self) -> list[Grammar]:
        found = []
        if self.definition is not None:
            text = self.definition if isinstance(self.definition, str) else json.dumps(self.definition)
            found.append(Grammar("json_schema", text, param="structured_outputs.json"))
        if self.json_object:
            found.append(Grammar("json_object", param="structured_outputs.json_object"))
        if self.regex is not None:
            found.append(Grammar("regex", self.regex, param="structured_outputs.regex"))
        if self.grammar_text is not None:
            found.append(Grammar("ebnf", self.grammar_text, param="structured_outputs.grammar"))
        if self.choice is not None:
            found.append(Grammar("ebnf", one_of(self.choice), param="structured_outputs.choice"))
        return found


def one_of(texts: list[str]) -> str:
    """An EBNF grammar of exactly `texts`."""
    return "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
