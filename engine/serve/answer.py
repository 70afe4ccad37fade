"""HTTP responses that follow a Stream: a whole body, or server-sent events; a client that leaves aborts the request."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from fastapi import Response
from starlette.types import Receive, Scope, Send

from engine.core.request import Request, StepOutput
from engine.serve.completion import Tally
from engine.serve.errors import error_response, user_error_response
from engine.serve.session import FAILED, Session, Stream


class AnswerForm(Protocol):
    """How one API writes an answer: the whole of it, or its events in the order of these methods."""

    def body(self, tallies: Sequence[Tally]) -> bytes:
        """The whole answer as JSON."""

    def opening(self) -> bytes:
        """Events before the first token."""

    def event(self, output: StepOutput) -> bytes:
        """What one output adds, or nothing while its text is held back."""

    def ending(self, output: StepOutput) -> bytes:
        """What follows the last output of one choice."""

    def closing(self, tallies: Sequence[Tally]) -> bytes:
        """What follows the last choice."""

    def failure(self, message: str) -> bytes:
        """What ends the events of a request that failed after its beginning."""


class Answer(Response):
    """Submits `request` and sends its completion in `form`, as events when `events` is true.

    The status is sent with the first output, so that a request which fails at once gets an HTTP error. The request is
    aborted as soon as the client disconnects.
    """

    def __init__(self, session: Session, request: Request, form: AnswerForm, *, events: bool) -> None:
        super().__init__()
        self._session = session
        self._request = request
        self._form = form
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._session.submit(self._request) as stream:
            watcher = asyncio.create_task(_close_on_disconnect(receive, stream))
            try:
                if self._events:
                    await self._send_events(stream, scope, receive, send)
                else:
                    await self._send_body(stream, scope, receive, send)
            finally:
                watcher.cancel()

    async def _send_body(self, stream: Stream, scope: Scope, receive: Receive, send: Send) -> None:
        tallies = self._tallies()
        async for output in stream:
            tallies[output.index].add(output)
            if output.finish_reason in FAILED:
                await _failure(stream, output)(scope, receive, send)
                return
        if all(tally.finish_reason for tally in tallies):
            await Response(self._form.body(tallies), media_type="application/json")(scope, receive, send)

    async def _send_events(self, stream: Stream, scope: Scope, receive: Receive, send: Send) -> None:
        first = await anext(stream, None)
        if first is None:
            return
        if first.finish_reason in FAILED:
            await _failure(stream, first)(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        tallies, opening = self._tallies(), self._form.opening()
        body, ended = self._event(first, tallies)
        await send({"type": "http.response.body", "body": opening + body, "more_body": not ended})
        async for output in stream:
            body, ended = self._event(output, tallies)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": not ended})

    def _tallies(self) -> list[Tally]:
        return [Tally() for _ in range(self._request.params.n)]

    def _event(self, output: StepOutput, tallies: Sequence[Tally]) -> tuple[bytes, bool]:
        """What one output adds to the events, and whether it is the last."""
        tallies[output.index].add(output)
        body = self._form.event(output)
        if output.finish_reason is None:
            return body, False
        if output.finish_reason in FAILED:
            return body + self._form.failure(output.error or "the request was aborted"), True
        body += self._form.ending(output)
        ended = all(tally.finish_reason for tally in tallies)
        return body + self._form.closing(tallies) if ended else body, ended


async def _close_on_disconnect(receive: Receive, stream: Stream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.close()


def _failure(stream: Stream, output: StepOutput) -> Response:
    if stream.rejection is not None:
        return user_error_response(stream.rejection)
    return error_response(500, output.error or "the request was aborted")
