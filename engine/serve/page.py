"""The page at `/`, and the figures that it shows at `/status`."""

import re
import time
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response

from engine.serve.session import Session


def build_router(session: Session) -> APIRouter:
    """The routes `/` and `/status`; both answer while the model is still loading."""
    router = APIRouter()
    started = time.monotonic()
    page = files("engine.serve").joinpath("page.html").read_bytes()
    policy = {"content-security-policy": content_policy(page.decode()), "referrer-policy": "no-referrer"}

    @router.get("/", include_in_schema=False, response_model=None)
    async def show_page() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=policy)

    @router.get("/status")
    async def status() -> dict[str, Any]:
        return read_status(session) | {"seconds": time.monotonic() - started}

    return router


def read_status(session: Session) -> dict[str, Any]:
    """What the server is and does now.

    `state` is "loading", "ready", "failed" or "closed", `error` why it failed. Once a model is loaded, `name`,
    `max_context` (tokens), `has_chat_template` and `identity` (the body of `/version`) describe it, and `stats` holds
    the engine's latest figures, those of `/metrics` and the bytes set aside for each kind of cache.
    """
    service = session.service
    error = None if session.error is None else str(session.error) or type(session.error).__name__
    found: dict[str, Any] = {"state": session.state, "error": error}
    if service is None:
        return found
    return found | {
        "name": service.name,
        "max_context": service.max_context,
        "has_chat_template": service.template is not None,
        "identity": dict(service.identity),
        "stats": dict(session.stats),
    }


def content_policy(page: str) -> str:
    """A Content-Security-Policy that lets the page use its own script, style and server, and nothing else."""
    script, style = (_hashes(page, kind) for kind in ("script", "style"))
    return (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {script}; style-src {style}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(page: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(body.encode()).digest()).decode()}'" for body in bodies)
