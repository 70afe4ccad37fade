"""The HTTP server: routes put together, health, keys, and the process that serves one model."""

import asyncio
import contextlib
import errno
import hmac
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.config import EngineConfig
from engine.errors import UserError
from engine.serve import errors, metrics, openai
from engine.serve.service import Service
from engine.serve.session import Session, State

logger = logging.getLogger(__name__)


def build_app(session: Session, api_keys: Sequence[str] = ()) -> FastAPI:
    """The application over `session`, which starts and closes with it. `api_keys` guard `/v1/*` when there are any."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        session.start()
        yield
        await session.close()

    def service() -> Service:
        if session.state != "ready" or session.service is None:
            raise HTTPException(503, f"the engine is {session.state}")
        return session.service

    # The pages that FastAPI offers load scripts from elsewhere.
    app = FastAPI(title="sweq-engine", lifespan=lifespan, docs_url=None, redoc_url=None)
    errors.install(app)
    app.include_router(openai.build_router(session, service))
    if api_keys:
        app.add_middleware(ApiKeys, keys=api_keys)

    @app.get("/health", response_model=None)
    async def health() -> JSONResponse:
        if session.state == "ready":
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": session.state, "error": session.error and str(session.error)}, 503)

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return dict(service().identity)

    @app.get("/metrics", response_model=None)
    async def metrics_page() -> Response:
        return Response(metrics.render(session), media_type=CONTENT_TYPE_LATEST)

    return app


class ApiKeys:
    """Lets a request to `/v1/*` through when its `Authorization: Bearer` or `x-api-key` names one of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/") and not self._allowed(Headers(scope=scope)):
            refusal = errors.error_response(401, "wrong or missing API key", code="invalid_api_key")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        bearer = key.strip() if scheme.lower() == "bearer" else ""
        given = [bearer.encode(), headers.get("x-api-key", "").strip().encode()]
        # Every key is compared in constant time, so that the answer's delay says nothing about any of them.
        return sum(hmac.compare_digest(one, known) for one in given for known in self._keys) > 0


class DrainingServer(uvicorn.Server):
    """Finishes running requests when asked to stop; after `drain_seconds` it ends them with an error they can read."""

    def __init__(self, app: FastAPI, session: Session, drain_seconds: float) -> None:
        # uvicorn's own limit cuts the connections, so it comes after ours.
        limit = math.ceil(drain_seconds) + 5
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=limit)
        )
        self._session = session
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self._drain_seconds, self._session.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def serve(
    model: str,
    quant: str = "as-stored",
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    config: EngineConfig,
    api_keys: Sequence[str] = (),
    served_model_name: str | None = None,
    drain_seconds: float = 30,
) -> None:
    """Serve `model` until SIGTERM or Ctrl-C, then finish what runs within `drain_seconds` and return.

    `port` 0 takes a free one. The server listens at once and answers 503 until the model is loaded; then one line on
    stdout says where. Raises UserError when the port is taken or the model cannot be loaded.
    """
    # Imported here so that the HTTP layer does not need torch.
    from engine.serve.opening import open_service

    listener = bind(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"

    def on_change(state: State) -> None:
        if state == "ready" and session.service is not None:
            _announce(session.service, url)
        elif state == "failed" and session.service is None:
            server.should_exit = True

    session = Session(partial(open_service, model, quant, config, served_model_name), on_change)
    server = DrainingServer(build_app(session, api_keys), session, drain_seconds)
    with _handled_signals():
        server.run(sockets=[listener])
        if session.is_loading:
            # Nothing is there to lose yet, a load cannot be interrupted, and waiting for it could take minutes; an
            # ordinary end would abort in the native code that the loading thread still runs.
            os._exit(0)
    if session.service is None and session.error is not None:
        raise session.error


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; UserError in one line when the address is taken or is not ours."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(f"port {port} on {host} is taken: choose another with --port") from error
        raise UserError(f"cannot listen on {host} port {port}: {error}") from error
    return listener


def _announce(service: Service, url: str) -> None:
    identity = service.identity
    size = identity["weights_bytes"] / 2**20
    print(f"Serving {service.name} ({identity['quant']}, {size:.4g} MiB of weights) at {url}", flush=True)
    if service.template is None:
        print("This model has no chat template: /v1/chat/completions is refused, /v1/completions works.", flush=True)
        return
    try:
        service.tool_syntax()
    except UserError as error:
        print(f"Requests with tools are refused; {error}.", flush=True)


@contextlib.contextmanager
def _handled_signals() -> Iterator[None]:
    """Make a drained shutdown end with status 0: uvicorn raises the signal that stopped it once more at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    logger.debug("signal %d after the shutdown that it asked for", number)
