"""The images of the Docker daemon: what is here, what it weighs, and what room its disk has."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound

from harness.errors import SandboxError
from harness.sandbox.images.shelf import Layer

FAILURES = (DockerException, requests.exceptions.RequestException, OSError)
# Instructions of a Dockerfile that only change an image's configuration and leave no layer.
_LAYERLESS = (
    "ENV", "CMD", "LABEL", "ENTRYPOINT", "EXPOSE", "USER", "SHELL", "ARG", "VOLUME", "STOPSIGNAL", "HEALTHCHECK",
    "MAINTAINER", "ONBUILD",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """An image that is here: content id, digest at its registry (empty where it came from none), measured layers."""

    image_id: str
    digest: str
    source: str
    layers: tuple[Layer, ...]


class ImageStore(Protocol):
    """Where images lie. Every method raises `SandboxError` when it cannot be asked."""

    def find(self, name: str) -> Found | None:
        """The image called `name`, None where there is none."""
        ...

    def remove(self, name: str) -> bool:
        """Remove the name, and the image with its last name; False while a container needs it."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes that are free on its disk, None where that cannot be seen from here."""
        ...


class DaemonStore:
    """The `ImageStore` of a Docker daemon."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client
        self._root = Path(client.info()["DockerRootDir"])

    def find(self, name: str) -> Found | None:
        """See `ImageStore.find`; a layer's key is the digest of its content (`diff_id`)."""
        try:
            image = self._client.images.get(name)
            history = image.history()
        except ImageNotFound:
            return None
        except FAILURES as error:
            raise SandboxError(f"{name}: Docker: {one_line(error)}") from error
        keys = image.attrs.get("RootFS", {}).get("Layers") or []
        sizes = measure_layers(len(keys), history, int(image.attrs["Size"]))
        digests = [digest.partition("@")[2] for digest in image.attrs.get("RepoDigests") or []]
        layers = tuple(Layer(key, size) for key, size in zip(keys, sizes, strict=True))
        source = image.labels.get("sweq.source", "official")
        return Found(str(image.id), digests[0] if digests else "", source, layers)

    def remove(self, name: str) -> bool:
        """See `ImageStore.remove`."""
        try:
            self._client.images.remove(name)
        except ImageNotFound:
            return True
        except APIError as error:
            if error.status_code == 409:
                return False
            raise SandboxError(f"{name}: Docker: {one_line(error)}") from error
        except FAILURES as error:
            raise SandboxError(f"{name}: Docker: {one_line(error)}") from error
        return True

    def free_bytes(self) -> int | None:
        """See `ImageStore.free_bytes`; a daemon on another machine keeps its disk to itself."""
        try:
            return shutil.disk_usage(self._root).free
        except OSError:
            return None


def measure_layers(count: int, history: list[dict[str, Any]], total: int) -> list[int]:
    """Bytes of each of an image's `count` layers, oldest first, from the daemon's history (newest first).

    History has entries without a layer. Where it cannot be told which, `total` is spread evenly, so that the sum holds.
    """
    entries = list(reversed(history))
    for makes_layer in (_has_bytes, _is_layer):
        chosen = [int(entry["Size"]) for entry in entries if makes_layer(entry)]
        if len(chosen) == count:
            return chosen
    share = total // max(1, count)
    return [total - share * (count - 1)] + [share] * (count - 1) if count else []


def one_line(error: BaseException) -> str:
    """The daemon's explanation, on one line."""
    text = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return " ".join(str(text).split())


def _has_bytes(entry: dict[str, Any]) -> bool:
    return int(entry["Size"]) > 0


def _is_layer(entry: dict[str, Any]) -> bool:
    if _has_bytes(entry):
        return True
    words = str(entry.get("CreatedBy", "")).replace("/bin/sh -c #(nop)", "").split()
    return not words or words[0].upper() not in _LAYERLESS


Echo = Callable[[str], None]
