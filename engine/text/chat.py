"""Chat messages to prompt text, through the checkpoint's own jinja template in a sandbox."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import CheckpointError, RequestError
from engine.text.messages import normalize


class ChatTemplate:
    """A compiled chat template.

    `source` is the jinja text (kept as an attribute), `special_tokens` the names it may use (`bos_token`, `eos_token`,
    ...), `where` the file or model that errors name. `supports_tools` tells whether the template reads `tools` at all,
    and `sha256` identifies the source in run records. Raises CheckpointError when the source does not compile.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = "chat template") -> None:
        environment = _environment()
        try:
            variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"{where}: chat template, line {error.lineno}: {error.message}") from error
        self.supports_tools = "tools" in variables
        self.source = source
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt text for `messages`, normalised first; its special tokens are part of the text.

        Raises RequestError when a message is malformed, when tools are given to a template without them, or when the
        template itself refuses the conversation.
        """
        if tools and not self.supports_tools:
            raise RequestError("this model's chat template has no tools; send the request without them", param="tools")
        try:
            return self._template.render(
                messages=normalize(messages),
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RequestError(f"the chat template refuses these messages: {error}", param="messages") from error

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes behind a conversation to begin the model's answer; "" where it has no such form."""
        messages = [{"role": "user", "content": "?"}]
        with_prompt, without = (self.render(messages, add_generation_prompt=wanted) for wanted in (True, False))
        return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""


class _Generation(Extension):
    """Accepts `{% generation %}`, which marks assistant text for training and renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """The set-up that published templates are written for (transformers' documentation, "Chat templates")."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes <, > and & for HTML, which would reach the model as \u003c.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
