"""Whether a model's server can serve agents: what `sweq doctor --base-url URL` asks of it, one finding per line."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from harness.config import EndpointConfig, load_config, read_api_key
from harness.run.doctor import Check

_TIMEOUT = 120.0
_PADDING = 400
"""Lines of a prompt that is long enough for any server to cache a part of it."""

_TOOL = {
    "type": "function",
    "function": {
        "name": "report",
        "description": "Report a number.",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    },
}


def check_servers(base_url: str | None, api_key: str | None, path: Path | None) -> Iterator[Check]:
    """The server at `base_url`, or every server that the configuration at `path` points at; both may be None.

    With both, `base_url` and `api_key` stand in for the configuration's; a level's own `base_url` stays. Raises
    `UserError` as `load_config`.
    """
    overrides = ["endpoint.kind=url", f"endpoint.base_url={base_url}"] if base_url else []
    config = load_config(path, overrides) if path is not None else None
    if config is None:
        if base_url is not None:
            yield from check_endpoint(base_url, read_api_key(EndpointConfig(api_key=api_key)), None, None)
        return
    if config.endpoint.kind == "engine":
        yield Check("endpoint", True, f"{path} starts its own at every level; it is asked with --base-url")
        return
    endpoint = config.endpoint.model_copy(update={"api_key": api_key or config.endpoint.api_key})
    for level in config.levels:
        url = level.base_url or endpoint.base_url or ""
        wanted = level.model or endpoint.served_model or config.model
        for check in check_endpoint(url, read_api_key(endpoint), wanted, endpoint.max_context):
            yield replace(check, name=f"{level.name}: {check.name}")


def check_endpoint(base_url: str, api_key: str | None, wanted: str | None, max_context: int | None) -> Iterator[Check]:
    """Ask the server at `base_url` for what a run needs; `wanted` is the model's name, None for the only one.

    Stops after the first finding without which the rest cannot be asked.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(headers=headers, timeout=_TIMEOUT, trust_env=False) as client:
        server = _Server(client, base_url.rstrip("/"))
        answers, entries = _check_answers(server)
        yield answers
        if not answers.passed:
            return
        listed = _check_model(entries, wanted)
        yield listed
        if not listed.passed:
            return
        server.model = wanted or str(entries[0]["id"])
        yield _check_context(server, entries, max_context)
        template = _check_template(server)
        yield template
        if template.passed:
            yield _check_tools(server)
        if template.passed or template.optional:
            yield _check_cache(server)


class _Server:
    """One server and its model's name."""

    def __init__(self, client: httpx.Client, base_url: str) -> None:
        self.client, self.base_url, self.model = client, base_url, ""

    def complete(self, messages: list[dict[str, Any]], max_tokens: int, **more: Any) -> dict[str, Any]:
        """A chat completion. Raises `_RefusedError` with one line for whatever is none."""
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}
        try:
            response = self.client.post(f"{self.base_url}/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise _RefusedError(f"{type(error).__name__}: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise _RefusedError(f"HTTP {response.status_code}: {_find_message(response)}")
        try:
            answer = response.json()
            answer["choices"][0]["message"].keys()
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _RefusedError(f"no chat completion: {response.text[:100]!r}") from error
        return dict(answer)


def _find_message(response: httpx.Response) -> str:
    """What an error says, in one short line: OpenAI's `error.message` where there is one."""
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = response.text
    return " ".join(said.split())[:200]


class _RefusedError(Exception):
    """The server did not answer as OpenAI's API does; the message is one line."""


def _check_answers(server: _Server) -> tuple[Check, list[dict[str, Any]]]:
    url, remedy = f"{server.base_url}/models", "start the server, or correct --base-url (it usually ends in /v1)"
    start = time.monotonic()
    try:
        response = server.client.get(url)
        entries = response.json()["data"] if response.status_code == httpx.codes.OK else []
        [str(entry["id"]) for entry in entries]
    except httpx.HTTPError as error:
        return Check("endpoint", False, f"{url} cannot be reached ({error})", remedy), []
    except (ValueError, KeyError, TypeError):
        return Check("endpoint", False, f"{url} is no OpenAI model list", remedy), []
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Check("endpoint", False, f"{url} answers HTTP {response.status_code}", "give --api-key"), []
    if response.status_code != httpx.codes.OK:
        return Check("endpoint", False, f"{url} answers HTTP {response.status_code}", remedy), []
    return Check("endpoint", True, f"answers in {1000 * (time.monotonic() - start):.0f} ms"), entries


def _check_model(entries: list[dict[str, Any]], wanted: str | None) -> Check:
    names = [str(entry["id"]) for entry in entries]
    found = wanted in names if wanted is not None else len(names) == 1
    finding = ", ".join(names) or "none is served"
    if wanted is not None and not found:
        finding = f"{wanted!r} is not served, but {finding}"
    return Check("model", found, finding, "set endpoint.served_model to the one to use")


def _check_context(server: _Server, entries: list[dict[str, Any]], max_context: int | None) -> Check:
    """From the configuration, our engine's `/version`, vLLM's `max_model_len` or llama.cpp's `meta.n_ctx`."""
    entry = next((entry for entry in entries if entry["id"] == server.model), {})
    meta = entry.get("meta") or {}
    said = entry.get("max_model_len") or meta.get("n_ctx") or _ask_version(server).get("max_context")
    known = min((length for length in (said, max_context) if length), default=None)
    finding = f"{known} tokens" if known else "the server does not say how long it is"
    return Check("context", known is not None, finding, "set endpoint.max_context", optional=True)


def _ask_version(server: _Server) -> dict[str, Any]:
    try:
        answer = server.client.get(f"{server.base_url.removesuffix('/v1')}/version").json()
    except (httpx.HTTPError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _check_template(server: _Server) -> Check:
    """One token after system, user, tool call and tool result: the shapes that an agent's history has."""
    call = {"id": "call_1", "type": "function", "function": {"name": "report", "arguments": '{"number": 1}'}}
    plain: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Report 1."}]
    tools = [
        *plain,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
    ]
    remedy = "serve the model with its own chat template"
    try:
        answer = server.complete(plain, 1)
    except _RefusedError as error:
        return Check("template", False, f"system and user messages: {error}", remedy)
    if not (answer.get("usage") or {}).get("prompt_tokens"):
        return Check("template", False, "answers have no usage figures", "use a server that counts tokens")
    try:
        server.complete(tools, 1, tools=[_TOOL])
    except _RefusedError as error:
        remedy = "set agent.profile to text or use a template with tools"
        return Check("template", False, f"takes no tool messages: {error}", remedy, optional=True)
    return Check("template", True, "takes system, user, tool call and tool result")


def _check_tools(server: _Server) -> Check:
    """A call asked for in words first, as agents do it, and then by force; with figures of what it took."""
    messages = [{"role": "user", "content": "Call the tool report with the number 7. Do not write anything else."}]
    forced = {"type": "function", "function": {"name": "report"}}
    problems = []
    for how, choice in (("by itself", "auto"), ("by force", forced)):
        try:
            answer = server.complete(messages, 256, tools=[_TOOL], tool_choice=choice)
        except _RefusedError as error:
            problems.append(f"{how}: {error}")
            continue
        problem = _find_fault(answer)
        if not problem:
            usage = answer["usage"]
            spent = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
            return Check("tools", True, f"a well-formed call, made {how} ({spent})")
        problems.append(f"{how}: {problem}")
    remedy = "start the server with its tool parser (vLLM: --enable-auto-tool-choice), or set agent.profile to text"
    return Check("tools", False, "; ".join(problems), remedy, optional=True)


def _find_fault(answer: dict[str, Any]) -> str:
    """What is wrong with an answer that should be a call of `report`; empty where nothing is."""
    calls = answer["choices"][0]["message"].get("tool_calls") or []
    if not calls:
        return "the model wrote no call"
    try:
        arguments = json.loads(calls[0]["function"]["arguments"])
        number = arguments["number"]
    except (ValueError, KeyError, TypeError):
        return f"a malformed call {str(calls[0])[:100]}"
    if calls[0]["function"].get("name") != "report" or not isinstance(number, int):
        return f"a call with {arguments}"
    usage = answer.get("usage") or {}
    return "" if usage.get("completion_tokens") else "no usage figures"


def _check_cache(server: _Server) -> Check:
    """The same long prompt twice: agents send all of a growing history again, so that a cache decides their speed."""
    text = f"{uuid.uuid4()}\n" + "\n".join(f"line {number}" for number in range(_PADDING))
    messages = [{"role": "user", "content": text}]
    remedy = "start the server with prefix caching and its report (vLLM: --enable-prompt-tokens-details)"
    try:
        server.complete(messages, 1)
        usage = server.complete(messages, 1)["usage"]
    except (_RefusedError, KeyError) as error:
        return Check("cache", False, str(error), "serve a context of 8192 tokens or more", optional=True)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if cached is None:
        return Check("cache", False, "no figures of cached prompt tokens", remedy, optional=True)
    finding = f"{cached} of {usage['prompt_tokens']} prompt tokens of a repeated request came from the cache"
    return Check("cache", cached > 0, finding, remedy, optional=True)
