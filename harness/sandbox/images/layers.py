"""Image layers made by running a script in a container, each cached by the hash of what it was made from.

The label `sweq.recipe` carries the hash, `sweq.source` the kind: `base`, `environment` or `sdist`.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
from docker.errors import ImageNotFound
from docker.models.images import Image

from harness.errors import SandboxError
from harness.sandbox.docker import DockerSandbox, own_labels
from harness.sandbox.supervise import last_line

_CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_STEP_TIMEOUT = 1_800.0


@dataclass(frozen=True)
class Layer:
    """What becomes the image `tag`: `script`, run by bash as root in a container of the image `parent`.

    `files` (absolute path to content) are there when the script starts; `environment` and `labels` stay in the image.
    """

    tag: str
    parent: str
    script: str
    source: str
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """The hash of all that the image is made from."""
        environment = (f"{key}={value}" for key, value in sorted(self.environment.items()))
        files = (f"{path}:{text}" for path, text in sorted(self.files.items()))
        return hash_recipe(self.parent, self.script, *environment, *files)


def commit_layer(client: docker.DockerClient, layer: Layer) -> None:
    """Run the layer's script in a container that has the host's network, and keep what it made as the layer's tag.

    Raises `SandboxError` with the script's last line when it fails.
    """
    # No entrypoint: the image would inherit it, and the official runner starts its containers with a command alone.
    command = ["bash", "-c", "while :; do sleep infinity & wait $!; done"]
    container = client.containers.run(layer.parent, command, detach=True, network_mode="host", labels=own_labels())
    with DockerSandbox(container) as box:
        for path, text in layer.files.items():
            box.write_file(path, text.encode())
        environment = {**_network_environment(), **layer.environment}
        certificates = _certificates()
        if certificates is not None:
            box.write_file("/build/certificates.pem", certificates.read_bytes())
            environment |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), "/build/certificates.pem")
        box.write_file("/build/build.sh", layer.script.encode())
        result = box.exec("bash /build/build.sh", timeout=_STEP_TIMEOUT, cwd="/", env=environment)
        if result.exit_code != 0:
            raise SandboxError(f"{layer.tag}: the build failed: {last_line(result.output)}")
        repository, _, version = layer.tag.rpartition(":")
        container.commit(repository, version, changes=["ENTRYPOINT []", 'CMD ["/bin/bash"]', *_changes(layer)])


def _changes(layer: Layer) -> Iterator[str]:
    # The container's owner would go into the image, and containers of others be taken for orphans of his.
    labels = {**layer.labels, "sweq.source": layer.source, "sweq.recipe": layer.recipe, "sweq.owner": ""}
    for instruction, pairs in (("ENV", layer.environment), ("LABEL", labels)):
        yield from (f"{instruction} {key}={json.dumps(value)}" for key, value in pairs.items())


@contextmanager
def only_builder(name: str) -> Iterator[None]:
    """Two processes that want the same image build it once."""
    with open(Path(tempfile.gettempdir()) / f"sweq-image-{hash_recipe(name)}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_image(client: docker.DockerClient, tag: str) -> Image | None:
    """The local image called `tag`."""
    try:
        return client.images.get(tag)
    except ImageNotFound:
        return None


def hash_recipe(*texts: str) -> str:
    """12 hex digits that stand for `texts`."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _network_environment() -> dict[str, str]:
    """The package index and the proxies that this process uses; they do not stay in the image."""
    names = (*_PASSED_ON, *_PROXIES)
    return {"PIP_RETRIES": "5"} | {name: os.environ[name] for name in names if os.environ.get(name)}


def _certificates() -> Path | None:
    """The certificate bundle that this process was told to trust."""
    paths = (Path(os.environ[name]) for name in _CERTIFICATES if os.environ.get(name))
    return next((path for path in paths if path.is_file()), None)
