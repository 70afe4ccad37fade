"""A stand-in for httpbin.org: the routes that the test suites of requests ask for, with the answers they read.

Own, because the package of that name pins a greenlet older than ours. It answers from what the request says and from
nothing else: it reads no file and opens no connection.
"""

import base64
import gzip
import hashlib
import json
import re
import secrets
import time
import zlib
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

_BODY_LIMIT = 16 << 20
_LONGEST_DELAY = 10.0
_ECHOING = {"get": "GET", "post": "POST", "put": "PUT", "patch": "PATCH", "delete": "DELETE"}


class HttpbinHandler(BaseHTTPRequestHandler):
    """One connection of a client inside the sandbox."""

    protocol_version = "HTTP/1.1"
    server_version = "sweq-httpbin"
    timeout = 60

    def answer(self) -> None:
        """Find the route and answer; a path without one is a 404, a method that a route does not take a 405."""
        parts = urlsplit(self.path)
        self.args = _flatten(parse_qs(parts.query, keep_blank_values=True))
        self.body = self._read_body()
        name, *rest = parts.path.strip("/").split("/")
        if name in _ECHOING:
            allowed = self.command == _ECHOING[name] or (self.command == "HEAD" and name == "get")
            if allowed:
                self._send_json(self._echo())
            else:
                self._send(405)
            return
        route = getattr(self, f"_route_{name.replace('-', '_')}", None)
        try:
            if route is None:
                raise ValueError(f"no route {name}")
            route(*rest)
        except (TypeError, ValueError, KeyError):
            self._send(404)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Requests of a sandbox are nobody's log."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(32).split(b";")[0] or b"0", 16):
                if len(body) + size > _BODY_LIMIT:
                    raise ConnectionAbortedError("the request's body is too large")
                body += self.rfile.read(size)
                self.rfile.readline(8)
            self.rfile.readline(8)
            return body
        return self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _BODY_LIMIT))

    def _echo(self) -> dict[str, Any]:
        form, files = self._read_form()
        text = "" if form or files else self.body.decode("utf-8", "replace")
        try:
            parsed = json.loads(text) if text else None
        except ValueError:
            parsed = None
        scheme = "https" if self.connection.getsockname()[1] == 443 else "http"
        return {
            "args": self.args,
            "data": text,
            "files": files,
            "form": form,
            "headers": dict(self.headers.items()),
            "json": parsed,
            "origin": "127.0.0.1",
            "url": f"{scheme}://{self.headers.get('Host', 'httpbin.org')}{self.path}",
        }

    def _read_form(self) -> tuple[dict[str, Any], dict[str, Any]]:
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("application/x-www-form-urlencoded"):
            return _flatten(parse_qs(self.body.decode("utf-8", "replace"), keep_blank_values=True)), {}
        form: dict[str, Any] = {}
        files: dict[str, Any] = {}
        if kind.startswith("multipart/form-data"):
            message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + self.body)
            parts = message.get_payload() if message.is_multipart() else []
            for part in (one for one in parts if isinstance(one, Message)):
                name = str(part.get_param("name", header="content-disposition"))
                payload = part.get_payload(decode=True)
                text = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
                (form if part.get_filename() is None else files)[name] = text
        return form, files

    def _send(self, status: int, body: bytes = b"", kind: str = "text/html; charset=utf-8", /, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(content, indent=2).encode() + b"\n", "application/json", **headers or {})

    def _route_(self) -> None:
        self._send(200, b"<!DOCTYPE html><title>httpbin</title>")

    def _route_html(self) -> None:
        self._send(200, b"<!DOCTYPE html><html><body><h1>Stand-in</h1></body></html>")

    def _route_headers(self) -> None:
        self._send_json({"headers": dict(self.headers.items())})

    def _route_user_agent(self) -> None:
        self._send_json({"user-agent": self.headers.get("User-Agent", "")})

    def _route_ip(self) -> None:
        self._send_json({"origin": "127.0.0.1"})

    def _route_status(self, code: str) -> None:
        number = int(code)
        if number in (301, 302, 303, 305, 307):
            self._send(number, Location="/redirect/1")
        elif number == 401:
            self._send(401, WWW_Authenticate='Basic realm="Fake Realm"')
        else:
            self._send(number)

    def _route_redirect(self, times: str) -> None:
        left = int(times)
        self._send(302, Location=f"/redirect/{left - 1}" if left > 1 else "/get")

    _route_relative_redirect = _route_redirect

    def _route_redirect_to(self) -> None:
        self._send(int(self.args.get("status_code", 302)), Location=_one_line(self.args["url"]))

    def _route_cookies(self, action: str = "") -> None:
        if action == "set":
            self._set_cookies([f"{_one_line(name)}={_one_line(value)}; Path=/" for name, value in self.args.items()])
        elif action == "delete":
            self._set_cookies([f"{_one_line(name)}=; Max-Age=0; Path=/" for name in self.args])
        else:
            pairs = (pair.strip().partition("=") for pair in self.headers.get("Cookie", "").split(";") if "=" in pair)
            self._send_json({"cookies": {name: value.strip('"') for name, _, value in pairs}})

    def _set_cookies(self, cookies: list[str]) -> None:
        self.send_response(302)
        for cookie in cookies:
            self.send_header("Set-Cookie", cookie)
        self.send_header("Location", "/cookies")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _route_response_headers(self) -> None:
        self._send_json(self.args, {_one_line(name): _one_line(value) for name, value in self.args.items()})

    def _route_basic_auth(self, user: str, password: str) -> None:
        expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        if self.headers.get("Authorization") == expected:
            self._send_json({"authenticated": True, "user": user})
        else:
            self._send(401, WWW_Authenticate='Basic realm="Fake Realm"')

    def _route_digest_auth(self, quality: str, user: str, password: str) -> None:
        """RFC 2617 with MD5, as httpbin.org's default."""
        given = dict(re.findall(r'(\w+)="?([^",]+)"?', self.headers.get("Authorization", "")))
        first = _md5(f"{user}:{given.get('realm', '')}:{password}")
        second = _md5(f"{self.command}:{given.get('uri', '')}")
        middle = [given.get(name, "") for name in ("nonce", "nc", "cnonce", "qop")]
        if "response" in given and given["response"] == _md5(":".join([first, *middle, second])):
            return self._send_json({"authenticated": True, "user": user})
        challenge = f'Digest realm="sweq@httpbin", nonce="{secrets.token_hex(16)}", qop="{_one_line(quality)}", '
        challenge += f'opaque="{secrets.token_hex(16)}", algorithm=MD5'
        return self._send(401, WWW_Authenticate=challenge, Set_Cookie="fake=fake_value; Path=/")

    def _route_gzip(self) -> None:
        body = gzip.compress(json.dumps({**self._echo(), "gzipped": True}).encode())
        self._send(200, body, "application/json", Content_Encoding="gzip")

    def _route_deflate(self) -> None:
        body = zlib.compress(json.dumps({**self._echo(), "deflated": True}).encode())
        self._send(200, body, "application/json", Content_Encoding="deflate")

    def _route_stream(self, lines: str) -> None:
        content = (json.dumps({**self._echo(), "id": number}) for number in range(min(int(lines), 100)))
        self._send(200, "".join(f"{line}\n" for line in content).encode(), "application/json")

    def _route_bytes(self, count: str) -> None:
        self._send(200, secrets.token_bytes(min(int(count), 100 << 10)), "application/octet-stream")

    def _route_delay(self, seconds: str) -> None:
        time.sleep(min(float(seconds), _LONGEST_DELAY))
        self._send_json(self._echo())


def _flatten(fields: dict[str, list[str]]) -> dict[str, Any]:
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _one_line(value: Any) -> str:
    return re.sub(r"[\r\n]", "", str(value))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
