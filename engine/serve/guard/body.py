"""Request bodies before they are parsed: bounded in size, in time and in what their JSON would take in memory."""

import asyncio
from itertools import accumulate

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.errors import refusal

DEFAULT_MAX_BODY = 64 << 20
"""Bytes. The longest context of Qwen3-Coder-Next is about a megabyte of text."""

MAX_DEPTH = 128
"""Objects and arrays inside each other: far more than any schema needs, far less than Python's recursion limit."""

MAX_CONTAINERS = 1 << 18
"""Objects and arrays in one body. An empty one is two bytes here and about sixty in memory."""

MAX_VALUES = 1 << 21
"""Values in one body, as token ids of a prompt. A number of few digits takes about forty bytes in memory."""

BODY_SECONDS = 120.0
"""How long one body may take to arrive."""

BODIES_AT_ONCE = 8
"""Bodies of the largest size that may be on their way together; more small ones fit."""

LINGER_SECONDS = 2.0
"""How long a refused body is read and thrown away, so that its sender sees the answer rather than a reset."""

LARGE = 1 << 20
"""Bytes from which a body is checked on another thread than the event loop's."""

_BRACKETS = b"[]{}"
_OUTSIDE_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'",' + _BRACKETS)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class RefusedError(Exception):
    """A body that is not read further."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BodyGuard:
    """Reads a request's body whole and gives it to `app` in one piece, or refuses it in the API's own error shape.

    Refused with 413: more than `max_body` bytes, declared or not. With 400: no UTF-8, JSON nested more than MAX_DEPTH
    deep or with more than MAX_CONTAINERS objects and arrays or MAX_VALUES values. With 408: not there after
    BODY_SECONDS. With 429: too many bodies are on their way. Whether it is JSON at all is the parser's to say.
    """

    def __init__(self, app: ASGIApp, max_body: int = DEFAULT_MAX_BODY) -> None:
        self._app = app
        self._max_body = max_body
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
            if body is None:
                return
            await (asyncio.to_thread(check_json, body) if len(body) > LARGE else _checked(body))
        except RefusedError as refused:
            await _refuse(refused, scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body; None when the client has gone."""
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_body:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._collect(parts, receive)
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from None
        finally:
            self._held -= sum(map(len, parts))

    async def _collect(self, parts: list[bytes], receive: Receive) -> bytes | None:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                raise self._too_large()
            if self._held + len(part) > BODIES_AT_ONCE * self._max_body:
                raise RefusedError(429, "too many large requests are being sent at once")
            self._held += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body has more than {self._max_body} bytes, which is the limit of this server")


def check_json(body: bytes) -> None:
    """Raise RefusedError for a body that is no UTF-8, or whose values are too deep or too many.

    It need not be valid JSON: brackets are counted outside of what would be strings.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the body is not valid UTF-8 at byte {error.start}") from error
    if b"\0" in body:
        raise RefusedError(400, "the body is not valid JSON: it holds a NUL byte; it must be UTF-8")
    if _containers(body) <= MAX_DEPTH and body.count(b",") <= MAX_VALUES:
        return
    structure = _structure(body)
    if _containers(structure) > MAX_CONTAINERS:
        raise RefusedError(400, f"the body has more than {MAX_CONTAINERS} JSON objects and arrays")
    if structure.count(b",") > MAX_VALUES:
        raise _too_many_values()
    if max(accumulate(map(_STEPS.__getitem__, structure.replace(b",", b""))), default=0) > MAX_DEPTH:
        raise RefusedError(400, f"the body's JSON is nested more than {MAX_DEPTH} deep")


def _containers(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _structure(body: bytes) -> bytes:
    """The brackets and commas of JSON outside of its strings, by C loops alone."""
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:
        raise _too_many_values()
    return b"".join(unescaped.translate(None, _OUTSIDE_STRUCTURE).split(b'"')[::2])


def _too_many_values() -> RefusedError:
    return RefusedError(400, f"the body has more than {MAX_VALUES} JSON values")


async def _checked(body: bytes) -> None:
    check_json(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, and then what the connection says."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def _refuse(refused: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once, and read on for a moment: a connection closed over unread data loses the answer."""

    async def send_open(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["more_body"] = True
        await send(message)

    answer = refusal(refused.status, str(refused), retry_after=1 if refused.status == 429 else None)
    answer.headers["connection"] = "close"
    await answer(scope, receive, send_open)
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            message: Message = {"more_body": True}
            while message.get("more_body", False):
                message = await receive()
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
