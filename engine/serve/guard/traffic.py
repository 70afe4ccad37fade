"""Requests on their way through the server: how many there may be, whether new ones are taken, and how they ended."""

from collections import Counter

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.errors import refusal

DISCONNECTED = 499
"""The status under which a request is counted whose client left before the end of the answer, as nginx does."""

RETRY_SECONDS = 1
DRAIN_RETRY_SECONDS = 5


class Traffic:
    """What is open and what has been, on the event loop's thread only.

    `max_open` is the number of POST requests that are taken at once, None for any number. `outcomes` counts finished
    requests by route and HTTP status.
    """

    def __init__(self, max_open: int | None = None) -> None:
        self.max_open = max_open
        self.open = 0
        self.is_draining = False
        self.outcomes: Counter[tuple[str, int]] = Counter()

    def refusal(self) -> Response | None:
        """The answer to a new request that is not taken, None when it is."""
        if self.is_draining:
            return refusal(503, "the server is shutting down", retry_after=DRAIN_RETRY_SECONDS)
        if self.max_open is not None and self.open >= self.max_open:
            message = f"the server has {self.open} requests already, as many as it takes; try again later"
            return refusal(429, message, code="queue_full", retry_after=RETRY_SECONDS)
        return None


class TrafficGate:
    """Counts requests into `traffic`, and refuses those that are too many before any of their body is read.

    Only POST requests make work; others are counted when they end and never refused.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        works = scope["method"] == "POST"
        refused = self._traffic.refusal() if works else None
        answer = _Answer(send)
        self._traffic.open += works
        try:
            await (refused or self._app)(scope, receive, answer.send)
        except Exception:
            answer.fail()
            raise
        finally:
            self._traffic.open -= works
            self._traffic.outcomes[route_of(scope), answer.outcome] += 1


def route_of(scope: Scope) -> str:
    """The path of the route that took the request, as it was declared: clients cannot make up labels."""
    return str(getattr(scope.get("route"), "path", "none"))


class _Answer:
    """Passes an answer on and notes how it ends."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = DISCONNECTED
        self.outcome = DISCONNECTED

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif not message.get("more_body", False):
            self.outcome = self._status
        await self._send(message)

    def fail(self) -> None:
        """The application raised; what surrounds it answers with an error."""
        self.outcome = 500
