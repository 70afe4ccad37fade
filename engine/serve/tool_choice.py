"""What a request's `tools`, `tool_choice` and `parallel_tool_calls` ask of the prompt, the sampler and the parser."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.core.request import SamplingParams
from engine.errors import RequestError
from engine.serve.call_grammar import call_grammar
from engine.serve.service import Service
from engine.text.tokenizer import Tokenizer
from engine.text.tool_calls import ToolCallStream, ToolSyntax

FUNCTION_NAME = re.compile(r"[^\s<>\"\\]{1,256}")

NEVER = -1e4
"""Added to a logit, more than any other token could make up for."""


@dataclass(frozen=True)
class ToolPlan:
    """How tools shape one request.

    `tools` go into the prompt. `syntax` None leaves the answer text. `is_forced`: the answer begins with a call, whose
    opening token is put behind the prompt, to one of `names`. `one_call` drops every call after the first.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    syntax: ToolSyntax | None = None
    is_forced: bool = False
    is_banned: bool = False
    names: tuple[str, ...] = ()
    one_call: bool = False

    def lead(self, tokenizer: Tokenizer) -> list[int]:
        """Ids put behind the prompt as the beginning of the answer."""
        if self.syntax is None or not self.is_forced:
            return []
        return [self.syntax.open_id, *tokenizer.encode("\n", affixes=False)]

    def constrain(self, params: SamplingParams) -> SamplingParams:
        """`params` with what makes the choice come true; RequestError when another grammar is in the way."""
        if self.syntax is None:
            return params
        if self.is_banned:
            # The tools stay in the prompt, which so begins like the conversation's other prompts in the cache.
            return replace(params, logit_bias={**params.logit_bias, self.syntax.open_id: NEVER})
        if not self.is_forced:
            return params
        if params.grammar is not None:
            raise RequestError("tool_choice: a forced call leaves no room for response_format", param="tool_choice")
        return replace(params, grammar=call_grammar(self.syntax.format, self._forced_schemas()))

    def _forced_schemas(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """What may be called: by name, where its parameters stand in the request, and their schema."""
        functions = [(f"tools[{at}].function.parameters", tool["function"]) for at, tool in enumerate(self.tools)]
        return {
            function["name"]: (where, function.get("parameters") or {})
            for where, function in functions
            if function["name"] in self.names
        }

    def reader(self, tokenizer: Tokenizer) -> ToolCallStream | None:
        """A parser for one choice, which has seen the lead already; None when the answer is text."""
        if self.syntax is None or self.is_banned:
            return None
        reader = ToolCallStream(self.syntax, tokenizer, self.tools)
        lead = self.lead(tokenizer)
        reader.push(lead, tokenizer.decode(lead))
        return reader


def plan_tools(
    service: Service, tools: Sequence[Mapping[str, Any]] | None, choice: Any, parallel: bool | None
) -> ToolPlan:
    """The plan for OpenAI's fields; RequestError that names the wrong one."""
    names = [_function_name(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]
    wanted = _wanted(choice, names)
    if not tools:
        return ToolPlan()
    forced = isinstance(wanted, tuple)
    return ToolPlan(
        tools=tools,
        syntax=service.tool_syntax(),
        is_forced=forced,
        is_banned=wanted == "none",
        names=wanted if isinstance(wanted, tuple) else (),
        one_call=parallel is False,
    )


def _function_name(tool: Mapping[str, Any], where: str) -> str:
    kind = tool.get("type", "function")
    if kind != "function":
        raise RequestError(f"{where}.type must be 'function'; got {kind!r}", param=f"{where}.type")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        param = f"{where}.function.name"
        raise RequestError(f"{param} must be a name without white space, quotes and angle brackets", param=param)
    if not isinstance(function.get("parameters"), Mapping | None):
        param = f"{where}.function.parameters"
        raise RequestError(f"{param} must be a JSON schema object", param=param)
    return name


def _wanted(choice: Any, names: Sequence[str]) -> str | tuple[str, ...]:
    """ "auto", "none", or the names of which one must be called."""
    if choice is None or choice in ("auto", "none"):
        return choice or "auto"
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            message = 'tool_choice must be {"type": "function", "function": {"name": ...}}'
            raise RequestError(message, param="tool_choice")
        if name not in names:
            raise RequestError(f"tool_choice: {name!r} is not among the request's tools", param="tool_choice")
        return (name,)
    if choice != "required":
        message = "tool_choice must be 'auto', 'none', 'required' or an object that names a function"
        raise RequestError(message, param="tool_choice")
    if not names:
        raise RequestError("tool_choice: 'required' needs tools", param="tool_choice")
    return tuple(dict.fromkeys(names))
