"""From the configuration's `images` section to a supply."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker

from harness.config import ImagesConfig
from harness.instances import Instance
from harness.sandbox.base import ImageSupply, SandboxFactory
from harness.sandbox.docker import DockerFactory
from harness.sandbox.images.daemon import DaemonStore, Echo
from harness.sandbox.images.ledger import Ledger, default_path
from harness.sandbox.images.plan import order_instances
from harness.sandbox.images.registry import Registry
from harness.sandbox.images.sources import ImageSource, PullSource, TarSource
from harness.sandbox.images.supply import DiskBudgetedSupply, OnHeld
from harness.sandbox.select import RoutingFactory


class LocalSupply:
    """An `ImageSupply` where everything is here already; what is not, the sandbox factory refuses in its own words."""

    def __init__(self, factory: SandboxFactory, on_held: OnHeld) -> None:
        self._factory, self._on_held = factory, on_held
        self._told: set[str] = set()

    def order(self, instances: Sequence[Instance]) -> list[Instance]:
        """See `ImageSupply.order`."""
        return order_instances(instances)

    def prefetch(self, instances: Sequence[Instance]) -> None:
        """See `ImageSupply.prefetch`: nothing is missing."""

    @contextlib.contextmanager
    def hold(self, instance: Instance) -> Iterator[None]:
        """See `ImageSupply.hold`."""
        chosen = _find_docker(self._factory, instance)
        if chosen is not None and instance.instance_id not in self._told:
            self._told.add(instance.instance_id)
            self._on_held(instance.instance_id, chosen.identity(instance))
        yield

    def status(self) -> str:
        """See `ImageSupply.status`."""
        return ""

    def close(self) -> None:
        """See `ImageSupply.close`."""


def make_supply(
    settings: ImagesConfig,
    factory: SandboxFactory,
    instances: Sequence[Instance],
    echo: Echo = print,
    on_held: OnHeld = lambda instance_id, identity: None,
    ledger: Path | None = None,
) -> ImageSupply:
    """The supply for `instances`, of which those that `factory` runs in Docker need an image.

    `on_held(instance_id, identity)` hears once of each image, when it is first held, from the holding thread; the
    identity has `image`, `digest` (content id), `source`, and for images that a supply brought `registry_digest` and
    `origin`. `ledger` is where it is kept what was brought; None: one file for each daemon.
    """
    docker_factory = next((found for one in instances if (found := _find_docker(factory, one))), None)
    if settings.source == "local" or docker_factory is None:
        return LocalSupply(factory, on_held)
    client = docker_factory.client
    source = make_source(settings, client)
    return DiskBudgetedSupply(
        DaemonStore(client),
        source,
        Ledger(ledger or default_path(daemon_id(client))),
        budget=settings.disk_budget,
        prefetch=settings.prefetch,
        echo=echo,
        uses=lambda one: _find_docker(factory, one) is not None,
        on_held=on_held,
    )


def make_source(settings: ImagesConfig, client: docker.DockerClient) -> ImageSource:
    """Where the section says that images come from."""
    if settings.source == "tar":
        return TarSource(client, Path(settings.folder or ""))
    return PullSource(client, Registry(settings.registry, manifest_cache()))


def manifest_cache() -> Path:
    """The folder of manifests that were read before."""
    return default_path("").parent / "manifests"


def daemon_id(client: docker.DockerClient) -> str:
    """A name of the daemon that stays."""
    return str(client.info().get("ID", ""))


def _find_docker(factory: SandboxFactory, instance: Instance) -> DockerFactory | None:
    """The part of `factory` that makes a container of an image of `instance`; None where it needs no image."""
    chosen = factory.route(instance) if isinstance(factory, RoutingFactory) else factory
    return chosen if instance.image is not None and isinstance(chosen, DockerFactory) else None
