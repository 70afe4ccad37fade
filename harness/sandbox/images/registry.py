"""An image registry, asked over HTTP what its images consist of (Docker Registry HTTP API v2, OCI distribution spec).

Only reads manifests, anonymously; images themselves are pulled by the Docker daemon, with the user's own credentials.
Docker Hub counts every manifest that is read as a pull, but not a HEAD request, so manifests are kept in a cache and
`retry_after` only sends HEAD.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import Any

import httpx

from harness.errors import SandboxError
from harness.files import replace_file
from harness.sandbox.images.estimates import EXPANSION
from harness.sandbox.images.shelf import Layer

DOCKER_HUB = "docker.io"
_HUB_API = "registry-1.docker.io"
_INDEXES = ("application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json")
_MANIFESTS = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class RateLimitedError(SandboxError):
    """The registry wants us to come back later: after `seconds`, where it says so."""

    def __init__(self, message: str, seconds: float | None) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True)
class Manifest:
    """One image of linux/amd64: the digest of its manifest, and its layers with their *compressed* bytes."""

    digest: str
    layers: tuple[Layer, ...]

    @property
    def on_disk(self) -> tuple[Layer, ...]:
        """The layers with the bytes that they are expected to take on the disk."""
        return tuple(Layer(layer.key, int(layer.size * EXPANSION)) for layer in self.layers)


class Registry:
    """Reads from `registry`, `HOST[/prefix]`; None is Docker Hub. Plain HTTP only for this machine's own addresses."""

    def __init__(self, registry: str | None = None, cache: Path | None = None) -> None:
        self.name = (registry or DOCKER_HUB).rstrip("/")
        self.host, _, prefix = self.name.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._cache = cache
        local = self.host.startswith("127.") or self.host.partition(":")[0] == "localhost"
        host = _HUB_API if self.host == DOCKER_HUB else self.host
        self._client = httpx.Client(base_url=f"{'http' if local else 'https'}://{host}", timeout=30.0)
        self._tokens: dict[str, str] = {}

    def locate(self, image: str) -> tuple[str, str]:
        """Repository, as the daemon pulls it, and tag of the official `image` at this registry."""
        repository, _, tag = image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
        return (repository if self.name == DOCKER_HUB else f"{self.name}/{repository}"), tag

    def read_manifest(self, image: str) -> Manifest:
        """The manifest of `image`; raises `RateLimitedError`, or `SandboxError` with what the registry said."""
        file = self._cached(image)
        if file is not None and file.exists():
            stored = json.loads(file.read_text())
            return Manifest(stored["digest"], tuple(Layer(key, size) for key, size in stored["layers"]))
        repository, tag = self._path(image)
        digest, data = self._get_manifest(repository, tag)
        if "manifests" in data:
            digest, data = self._get_manifest(repository, _choose_platform(image, data["manifests"]))
        if not isinstance(data.get("layers"), list):
            raise SandboxError(f"{image}: {self.name} answered with a manifest that has no layers")
        manifest = Manifest(digest, tuple(Layer(str(one["digest"]), int(one["size"])) for one in data["layers"]))
        if file is not None:
            content = {"digest": digest, "layers": [[one.key, one.size] for one in manifest.layers]}
            replace_file(file, json.dumps(content).encode())
        return manifest

    def retry_after(self, image: str) -> float | None:
        """Seconds after which the registry will answer again, None where it does not say."""
        repository, tag = self._path(image)
        try:
            self._ask("HEAD", repository, tag)
        except RateLimitedError as error:
            return error.seconds
        except SandboxError:
            return None
        return None

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _path(self, image: str) -> tuple[str, str]:
        repository, tag = self.locate(image)
        return repository.removeprefix(f"{self.host}/"), tag

    def _cached(self, image: str) -> Path | None:
        name = hashlib.sha256(f"{self.name}/{image}".encode()).hexdigest()[:24]
        return self._cache / f"{name}.json" if self._cache is not None else None

    def _get_manifest(self, repository: str, reference: str) -> tuple[str, dict[str, Any]]:
        answer = self._ask("GET", repository, reference)
        digest = answer.headers.get("Docker-Content-Digest") or f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        try:
            data: dict[str, Any] = answer.json()
        except json.JSONDecodeError:
            raise SandboxError(f"{repository}: {self.name} answered with something that is no manifest") from None
        return digest, data

    def _ask(self, method: str, repository: str, reference: str) -> httpx.Response:
        try:
            answer = self._send(method, repository, reference)
            if answer.status_code == 401:
                self._tokens[repository] = self._fetch_token(repository, answer.headers.get("WWW-Authenticate", ""))
                answer = self._send(method, repository, reference)
        except httpx.HTTPError as error:
            raise SandboxError(f"registry {self.name} does not answer: {type(error).__name__} {error}") from None
        if answer.status_code == 429:
            raise RateLimitedError(f"{self.name} limits the rate of pulls", read_retry_after(answer.headers))
        if answer.status_code != 200:
            raise SandboxError(f"{repository}:{reference}: {self.name} answered {answer.status_code}")
        return answer

    def _send(self, method: str, repository: str, reference: str) -> httpx.Response:
        headers = {"Accept": ", ".join(_INDEXES + _MANIFESTS)}
        if repository in self._tokens:
            headers["Authorization"] = f"Bearer {self._tokens[repository]}"
        return self._client.request(method, f"/v2/{repository}/manifests/{reference}", headers=headers)

    def _fetch_token(self, repository: str, challenge: str) -> str:
        """An anonymous token, as the challenge of the registry asks for (distribution spec, token authentication)."""
        wanted = dict(_PARAMETER.findall(challenge))
        if not challenge.lower().startswith("bearer ") or "realm" not in wanted:
            raise SandboxError(f"{repository}: {self.name} wants a login: `docker login`, and pull without a plan")
        realm = wanted.pop("realm")
        wanted.setdefault("scope", f"repository:{repository}:pull")
        answer = self._client.get(realm, params=wanted)
        if answer.status_code == 429:
            raise RateLimitedError(f"{self.name} limits the rate of tokens", read_retry_after(answer.headers))
        data = answer.json() if answer.status_code == 200 else {}
        if not (token := data.get("token") or data.get("access_token")):
            raise SandboxError(f"{repository}: {self.name} gave no token ({answer.status_code})")
        return str(token)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date (RFC 9110, 10.2.3); None without one."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def _choose_platform(image: str, entries: list[dict[str, Any]]) -> str:
    for entry in entries:
        platform = entry.get("platform", {})
        if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
            return str(entry["digest"])
    raise SandboxError(f"{image}: the registry has it, but not for linux/amd64")
