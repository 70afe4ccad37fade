"""A small image registry on 127.0.0.1: token login, an index of platforms, and the faults of real ones on demand."""

import gzip
import hashlib
import io
import json
import random
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


class FakeRegistry:
    """`limited` manifest requests and `truncated` blob requests still to come go wrong; `requests` counts the paths."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.requests: Counter[str] = Counter()
        self.limited = self.truncated = 0
        self.retry_after = "1"
        self.lock = threading.Lock()
        self.address = ""

    def add(self, repository: str, layers: Sequence[tuple[str, int]]) -> str:
        """Serve `repository:latest` with a layer of `size` bytes for each (seed, size); returns its digest."""
        packed = [make_layer(seed, size) for seed, size in layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/none"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(gzip.decompress(data)) for data in packed]},
            "history": [{"created_by": f"COPY {seed} /"} for seed, _ in layers],
        }
        described = [self._describe(data, "application/vnd.docker.image.rootfs.diff.tar.gzip") for data in packed]
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._describe(json.dumps(config).encode(), "application/vnd.docker.container.image.v1+json"),
            "layers": described,
        }
        data = json.dumps(manifest).encode()
        entry = {"mediaType": _MANIFEST, "size": len(data), "digest": _digest(data)}
        arm = {**entry, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "arm64"}}
        amd = {**entry, "platform": {"os": "linux", "architecture": "amd64"}}
        index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [arm, amd]}).encode()
        self.manifests[f"{repository}:{_digest(data)}"] = (_MANIFEST, data)
        self.manifests[f"{repository}:{_digest(index)}"] = self.manifests[f"{repository}:latest"] = (_INDEX, index)
        return _digest(index)

    def _describe(self, data: bytes, kind: str) -> dict[str, object]:
        self.blobs[_digest(data)] = data
        return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


def make_layer(seed: str, size: int) -> bytes:
    """A gzipped tar with one file of `size` incompressible bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(f"{seed}.bin")
        entry.size = size
        archive.addfile(entry, io.BytesIO(random.Random(seed).randbytes(size)))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


@contextmanager
def serve() -> Iterator[FakeRegistry]:
    """A registry that answers until the context ends."""
    registry = FakeRegistry()
    handler = type("Handler", (_Handler,), {"registry": registry})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    registry.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    registry: FakeRegistry
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        registry, path = self.registry, self.path.partition("?")[0]
        registry.requests[f"{self.command} {path}"] += 1
        if path == "/token":
            self._answer(200, b'{"token": "open sesame"}')
        elif self.headers.get("Authorization") != "Bearer open sesame":
            realm = f'Bearer realm="http://{registry.address}/token",service="fake"'
            self._answer(401, b"{}", {"WWW-Authenticate": realm})
        elif path == "/v2/":
            self._answer(200, b"{}")
        elif "/manifests/" in path:
            self._answer_manifest(*path.removeprefix("/v2/").split("/manifests/"))
        else:
            self._answer_blob(path.rpartition("/")[2])

    def _answer_manifest(self, repository: str, reference: str) -> None:
        with self.registry.lock:
            limited = self.registry.limited > 0
            self.registry.limited -= limited
        if limited:
            error = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "pull rate limit"}]}'
            self._answer(429, error, {"Retry-After": self.registry.retry_after})
        elif (found := self.registry.manifests.get(f"{repository}:{reference}")) is None:
            self._answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}')
        else:
            self._answer(200, found[1], {"Docker-Content-Digest": _digest(found[1])}, found[0])

    def _answer_blob(self, digest: str) -> None:
        data = self.registry.blobs[digest]
        with self.registry.lock:
            truncated = self.registry.truncated > 0 and len(data) > 10_000
            self.registry.truncated -= truncated
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        cut = len(data) // 2 if truncated else None
        self._answer(206 if first else 200, data[first:], headers, "application/octet-stream", cut)

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, kind: str = "application/json",
        cut: int | None = None,
    ) -> None:  # fmt: skip
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        self.close_connection = self.close_connection or cut is not None

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
