"""Where images come from: a registry, or archives that `docker save` wrote."""

import contextlib
import json
import posixpath
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import docker

from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.images.daemon import FAILURES, one_line
from harness.sandbox.images.estimates import EXPANSION, estimate_layers
from harness.sandbox.images.registry import DOCKER_HUB, RateLimitedError, Registry
from harness.sandbox.images.shelf import Layer

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
_LIMITED = ("toomanyrequests", "too many requests", "429", "rate limit")
_FINAL = ("not found", "manifest unknown", "access denied", "unauthorized", "no space left on device", "denied:")


class LastingError(SandboxError):
    """Trying again will not help."""


class ImageSource(Protocol):
    """Brings images to the daemon. `limits_reads`: describing an image counts against a rate limit, too."""

    limits_reads: bool

    def expect(self, instance: Instance) -> tuple[Layer, ...]:
        """The layers that the instance's image is expected to consist of, in bytes on the disk.

        May raise `SandboxError`.
        """
        ...

    def bring(self, image: str, instance_id: str) -> str:
        """Bring `image` under its official name; returns where from. May be called again after any failure.

        Raises `RateLimitedError`, `LastingError`, or `SandboxError` where another attempt may help.
        """
        ...

    def temporary_name(self, image: str) -> str | None:
        """Another name under which an interrupted `bring` may have left the image."""
        ...


class PullSource:
    """Pulls from Docker Hub or, where `registry` is another, from that mirror, and gives images their official names.

    Docker Hub counts a manifest that is read as a pull, so there the estimates do until an image has been measured.
    """

    def __init__(self, client: docker.DockerClient, registry: Registry) -> None:
        self._client, self._registry = client, registry
        self.limits_reads = registry.host == DOCKER_HUB

    def expect(self, instance: Instance) -> tuple[Layer, ...]:
        """See `ImageSource.expect`."""
        if self.limits_reads or instance.image is None:
            return estimate_layers(instance)
        return self._registry.read_manifest(instance.image).on_disk

    def bring(self, image: str, instance_id: str) -> str:
        """See `ImageSource.bring`."""
        repository, tag = self._registry.locate(image)
        try:
            pulled = self._client.images.pull(repository, tag=tag, platform="linux/amd64")
            if self._registry.name != DOCKER_HUB:
                pulled.tag(*image.rsplit(":", 1)) if ":" in image.rpartition("/")[2] else pulled.tag(image)
                self._client.images.remove(f"{repository}:{tag}")
        except FAILURES as error:
            raise self._explain(image, one_line(error)) from error
        digests = [str(one) for one in pulled.attrs.get("RepoDigests") or []]
        return next((one for one in digests if one.startswith(f"{repository}@")), f"{repository}:{tag}")

    def temporary_name(self, image: str) -> str | None:
        """See `ImageSource.temporary_name`."""
        return None if self._registry.name == DOCKER_HUB else ":".join(self._registry.locate(image))

    def _explain(self, image: str, text: str) -> SandboxError:
        lowered = text.lower()
        if any(sign in lowered for sign in _LIMITED):
            return RateLimitedError(f"{image}: {text}", self._registry.retry_after(image))
        kind = LastingError if any(sign in lowered for sign in _FINAL) else SandboxError
        return kind(f"{image}: cannot be pulled from {self._registry.name}: {text}")


class TarSource:
    """Loads archives of `docker save` from a file or a folder, found by their name or by the image names inside."""

    limits_reads = False

    def __init__(self, client: docker.DockerClient, place: Path) -> None:
        self._client = client
        self._files = list_archives(place)
        self._place = place
        self._inside: dict[str, Path] | None = None

    def expect(self, instance: Instance) -> tuple[Layer, ...]:
        """See `ImageSource.expect`; a compressed archive is one layer, as large as it may become."""
        file = self._find(str(instance.image), instance.instance_id)
        if file.suffix == ".tar":
            return _read_layers(file, str(instance.image))
        return (Layer(f"archive:{file.name}", int(file.stat().st_size * EXPANSION)),)

    def bring(self, image: str, instance_id: str) -> str:
        """See `ImageSource.bring`."""
        file = self._find(image, instance_id)
        names = load_archive(self._client, file)
        if image not in names:
            if len(names) != 1:
                raise LastingError(f"{file}: holds {', '.join(names) or 'no named image'}, not {image}")
            self._client.images.get(names[0]).tag(*image.rsplit(":", 1))
        return str(file)

    def temporary_name(self, image: str) -> str | None:
        """See `ImageSource.temporary_name`."""
        return None

    def _find(self, image: str, instance_id: str) -> Path:
        own = image.rpartition("/")[2].rpartition(":")[0] or image.rpartition("/")[2]
        for file in self._files:
            if file.name.split(".tar")[0].removesuffix(".tgz") in (instance_id, own):
                return file
        if self._inside is None:
            self._inside = {name: file for file in self._files for name in read_names(file)}
        if image not in self._inside:
            raise LastingError(f"{self._place}: no archive of {image}; save one as {instance_id}.tar")
        return self._inside[image]


def list_archives(place: Path) -> list[Path]:
    """The archives that `place` is or holds; raises `UserError` where there are none."""
    files = [place] if place.is_file() else sorted(place.iterdir()) if place.is_dir() else []
    archives = [file for file in files if file.name.endswith(ARCHIVES)]
    if not archives:
        raise UserError(f"{place}: neither an archive of `docker save` ({', '.join(ARCHIVES)}) nor a folder of them")
    return archives


def load_archive(client: docker.DockerClient, file: Path) -> list[str]:
    """Load one archive into the daemon; returns the names of its images."""
    try:
        with _open_for_daemon(file) as stream:
            loaded = client.images.load(stream)
    except FAILURES as error:
        raise LastingError(f"{file}: cannot be loaded: {one_line(error)}") from error
    return [name for image in loaded for name in image.tags]


def read_names(file: Path) -> list[str]:
    """The names of the images in an archive, from its manifest."""
    return [name for entry in _read_manifest(file) for name in entry.get("RepoTags") or []]


@contextlib.contextmanager
def _open_for_daemon(file: Path) -> Iterator[Any]:
    """The archive's bytes; the daemon itself knows gzip, zstd is taken off by its own tool."""
    if not file.name.endswith(".zst"):
        with file.open("rb") as plain:
            yield plain
        return
    try:
        process = subprocess.Popen(["zstd", "-dcq", str(file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{file}: needs zstd (apt-get install zstd), or a .tar or .tar.gz instead") from None
    with process:
        yield process.stdout
    if process.returncode != 0:
        raise LastingError(f"{file}: zstd cannot read it")


def _read_manifest(file: Path) -> list[dict[str, Any]]:
    try:
        with _open_for_daemon(file) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            found = next((archive.extractfile(member) for member in archive if member.name == "manifest.json"), None)
            manifest: list[dict[str, Any]] = json.loads(found.read()) if found else []
            while stream.read(1 << 20):
                pass
            return manifest
    except (tarfile.TarError, OSError, ValueError) as error:
        raise LastingError(f"{file}: not an archive of `docker save`: {error}") from error


def _read_layers(file: Path, image: str) -> tuple[Layer, ...]:
    """The layers of one image in a plain archive, by the digests of their content."""
    try:
        with tarfile.open(file) as archive:
            members = {member.name: member for member in archive}
            manifest = json.load(_member(archive, members, "manifest.json"))
            entry = next((one for one in manifest if image in (one.get("RepoTags") or [])), manifest[0])
            digests = json.load(_member(archive, members, entry["Config"]))["rootfs"]["diff_ids"]
            sizes = [members[_resolve(members[path])].size for path in entry["Layers"]]
    except (tarfile.TarError, OSError, ValueError, LookupError) as error:
        raise LastingError(f"{file}: not an archive of `docker save`: {error}") from error
    return tuple(Layer(digest, size) for digest, size in zip(digests, sizes, strict=True))


def _resolve(member: tarfile.TarInfo) -> str:
    """Where the bytes of a layer are: older daemons save one that several images share as a symbolic link."""
    if not member.issym():
        return member.name
    return posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))


def _member(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str) -> Any:
    return archive.extractfile(members[name])
