"""API keys: where they come from, and the guard that asks for one."""

import hmac
from collections.abc import Iterable, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import UserError
from engine.serve.errors import error_response

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""What needs no key: the page, which asks for one before it shows anything, and what supervisors ask."""


class ApiKeys:
    """Lets a request through when its `Authorization: Bearer` or `x-api-key` names one of the keys.

    Guards every path but OPEN_PATHS.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._allowed(Headers(scope=scope)):
            refusal = error_response(401, "wrong or missing API key", code="invalid_api_key")
            refusal.headers["www-authenticate"] = "Bearer"
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        bearer = key.strip() if scheme.lower() == "bearer" else ""
        given = [bearer.encode(), headers.get("x-api-key", "").strip().encode()]
        # Every key is compared in constant time, so that the answer's delay says nothing about any of them.
        return sum(hmac.compare_digest(one, known) for one in given for known in self._keys) > 0


def collect_keys(given: Iterable[str], file: Path | None = None) -> tuple[str, ...]:
    """The keys of the command line and of a file; UserError for one that no client could send.

    The file holds a key per line; empty lines and those that begin with `#` are skipped.
    """
    keys = [(key, "--api-key") for key in given]
    if file is not None:
        keys += [(key, f"--api-key-file {file}: line {number}") for number, key in _lines(file)]
    for key, where in keys:
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise UserError(f"{where}: a key must be printable ASCII without spaces, and not empty")
    return tuple(key for key, _ in keys)


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--api-key-file {file}: {error.strerror}; give a file with a key per line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--api-key-file {file}: not UTF-8; give a file with a key per line") from error
    keys = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [(number, key) for number, key in keys if key and not key.startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {file}: holds no key; give a file with a key per line")
    return keys
