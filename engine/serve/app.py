"""The HTTP server: routes put together, health, keys, and the process that serves one model."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from engine.config import EngineConfig
from engine.errors import LostRankError, UserError
from engine.serve import errors, metrics, openai, page, tokenization
from engine.serve.anthropic import messages
from engine.serve.guard.body import DEFAULT_MAX_BODY, BodyGuard
from engine.serve.guard.connection import Connection
from engine.serve.guard.keys import ApiKeys
from engine.serve.guard.traffic import Traffic, TrafficGate
from engine.serve.responses import routes as responses
from engine.serve.service import Service
from engine.serve.session import Session, State

logger = logging.getLogger(__name__)

DEFAULT_MAX_WAITING = 1024
"""Requests that may wait for a place in the batch."""

CLOSING_SECONDS = 5
"""How long the last answers may take to leave once everything has ended."""

KEEP_ALIVE_SECONDS = 30
"""Longer than clients keep an idle connection, so that none sends a request into one that is being closed."""

OPEN_FILES = 1 << 16

SEND_BUFFER = 1 << 17
"""Bytes that the kernel may hold of what a client has not read; by itself it takes megabytes for each."""


def build_app(
    session: Session,
    api_keys: Sequence[str] = (),
    *,
    max_body: int = DEFAULT_MAX_BODY,
    max_open: int | None = None,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The application over `session`, which starts and closes with it.

    `api_keys` guard what `engine.serve.guard.keys` says, when there are any. `max_body` is in bytes, `max_open` the
    number of POST requests taken at once. Pages of `cors_origins` may call the API from a browser; none may by default.
    `app.state.traffic` is the Traffic through it.
    """

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
    app.include_router(page.build_router(session))
    app.include_router(openai.build_router(session, service))
    app.include_router(messages.build_router(session, service))
    app.include_router(responses.build_router(session, service))
    app.include_router(tokenization.build_router(service))
    traffic = app.state.traffic = Traffic(max_open)
    # The last one added sees a request first.
    app.add_middleware(BodyGuard, max_body=max_body)
    if api_keys:
        app.add_middleware(ApiKeys, keys=api_keys)
    app.add_middleware(TrafficGate, traffic=traffic)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["*"], allow_headers=["*"])

    _add_state_routes(app, session, service)
    return app


def _add_state_routes(app: FastAPI, session: Session, service: Callable[[], Service]) -> None:
    traffic: Traffic = app.state.traffic

    @app.get("/health", response_model=None)
    async def health() -> JSONResponse:
        if session.state == "ready":
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": session.state, "error": session.error and str(session.error)}, 503)

    @app.get("/ready", response_model=None)
    async def ready() -> JSONResponse:
        state = "draining" if traffic.is_draining else session.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return dict(service().identity)

    @app.get("/metrics", response_model=None)
    async def metrics_page() -> Response:
        return Response(metrics.render(session, traffic), media_type=CONTENT_TYPE_LATEST)


class DrainingServer(uvicorn.Server):
    """Finishes running requests when asked to stop; after `drain_seconds` it ends them with an error they can read.

    Meanwhile it listens on, so that new requests and `/ready` get a 503 rather than a refused connection.
    """

    def __init__(self, app: FastAPI, session: Session, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                log_level="error",
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSING_SECONDS,
            )
        )
        self._session = session
        self._traffic: Traffic = app.state.traffic
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._traffic.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                while self._traffic.open and not self.force_exit:
                    await asyncio.sleep(0.02)
        self._session.end_all()
        await super().shutdown(sockets)


def serve(
    model: str,
    quant: str = "as-stored",
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    config: EngineConfig,
    api_keys: Sequence[str] = (),
    served_model_name: str | None = None,
    max_body: int = DEFAULT_MAX_BODY,
    max_waiting: int = DEFAULT_MAX_WAITING,
    cors_origins: Sequence[str] = (),
    drain_seconds: float = 30,
) -> None:
    """Serve `model` until SIGTERM or Ctrl-C, then finish what runs within `drain_seconds` and return.

    `port` 0 takes a free one. The server listens at once and answers 503 until the model is loaded; then one line on
    stdout says where. More than `max_waiting` requests beside those in the batch are refused with 429, bodies of more
    than `max_body` bytes with 413. Raises UserError when the port is taken or the model cannot be loaded,
    LostRankError when one of several ranks ends.
    """
    # Imported here so that the HTTP layer does not need torch.
    from engine.serve.opening import open_service

    listener = bind(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"

    def on_change(state: State) -> None:
        if state == "ready" and session.service is not None:
            _announce(session.service, url)
        elif state == "failed" and (session.service is None or isinstance(session.error, LostRankError)):
            server.should_exit = True

    session = Session(partial(open_service, model, quant, config, served_model_name), on_change)
    app = build_app(
        session, api_keys, max_body=max_body, max_open=config.max_running + max_waiting, cors_origins=cors_origins
    )
    server = DrainingServer(app, session, drain_seconds)
    _allow_open_files()
    with _handled_signals():
        server.run(sockets=[listener])
        if session.is_loading:
            # Nothing is there to lose yet, a load cannot be interrupted, and waiting for it could take minutes; an
            # ordinary end would abort in the native code that the loading thread still runs.
            os._exit(0)
    if session.error is not None and (session.service is None or isinstance(session.error, LostRankError)):
        raise session.error


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; UserError in one line when the address is taken or is not ours."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(f"port {port} on {host} is taken: choose another with --port") from error
        raise UserError(f"cannot listen on {host} port {port}: {error}") from error
    return listener


def _allow_open_files() -> None:
    """Raise the soft limit of open files, often 1,024, so that as many clients can connect as may wait."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
