"""Decides which sandbox each instance runs in, before anything runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.config import RunConfig
from harness.errors import UserError
from harness.instances import Instance
from harness.sandbox.base import Sandbox, SandboxFactory
from harness.sandbox.docker import DockerFactory
from harness.sandbox.namespace import NamespaceFactory, probe

Kind = Literal["auto", "docker", "namespace"]


class RoutingFactory:
    """Sends each instance to the factory chosen for it."""

    name = "docker+namespace"

    def __init__(self, routes: Mapping[str, SandboxFactory]) -> None:
        self._routes = dict(routes)

    def create(self, instance: Instance) -> Sandbox:
        """See `SandboxFactory.create`."""
        return self.route(instance).create(instance)

    def route(self, instance: Instance) -> SandboxFactory:
        """The factory of `instance`; raises `UserError` for one that was not there when the routes were made."""
        if instance.instance_id not in self._routes:
            raise UserError(f"{instance.instance_id}: no sandbox was chosen for it")
        return self._routes[instance.instance_id]


def choose_for(config: RunConfig, instances: Sequence[Instance], *, supplied: bool = False) -> SandboxFactory:
    """`choose` as the run's configuration says: its sandbox, the agent's folders, the Docker host and runtime."""
    return choose(
        config.sandbox,
        instances,
        config.agent.external.folders if config.agent.external else (),
        host=config.docker.host,
        runtime=config.docker.runtime,
        supplied=supplied,
    )


def choose(
    kind: Kind,
    instances: Sequence[Instance],
    folders: Sequence[Path] = (),
    *,
    host: str | None = None,
    runtime: str | None = None,
    supplied: bool = False,
) -> SandboxFactory:
    """The factory that can run all of `instances`; raises `UserError` naming the first that it cannot run, and why.

    `auto` takes Docker for an instance with an image when a daemon answers, otherwise namespaces when it brings its
    tree along. Images and kernel permissions are checked here, so that a run does not find out hours later.
    `folders` are shown inside every sandbox, read-only. `host` and `runtime` are those of `DockerFactory`.
    Images need not be here yet where a supply brings them (`supplied`).
    """
    if kind == "docker":
        return _docker_for(instances, folders, host, runtime, supplied)
    if kind == "namespace":
        return _namespace_for(instances, folders)
    with_image = [instance for instance in instances if instance.image is not None]
    try:
        docker = _docker_for(with_image, folders, host, runtime, supplied) if with_image else None
    except UserError:
        if host or runtime or any(instance.tree is None for instance in with_image):
            raise
        docker, with_image = None, []
    others = [instance for instance in instances if instance not in with_image]
    if docker is None:
        return _namespace_for(others, folders)
    if not others:
        return docker
    namespace = _namespace_for(others, folders)
    routes = {instance.instance_id: docker if instance in with_image else namespace for instance in instances}
    return RoutingFactory(routes)


def describe(factory: SandboxFactory, instances: Sequence[Instance], *, supplied: bool = False) -> dict[str, Any]:
    """What the run record keeps of the sandboxes: `names`, and for each instance in Docker its image's identity.

    With a supply (`supplied`) the identities are not known yet: it tells each when the image is first held.
    """
    used: list[str] = []
    images: dict[str, dict[str, str]] = {}
    for instance in instances:
        chosen = factory.route(instance) if isinstance(factory, RoutingFactory) else factory
        if chosen.name not in used:
            used.append(chosen.name)
        if isinstance(chosen, DockerFactory) and not supplied:
            images[instance.instance_id] = chosen.identity(instance)
    return {"names": used, "images": images}


def _docker_for(
    instances: Sequence[Instance], folders: Sequence[Path], host: str | None, runtime: str | None, supplied: bool
) -> DockerFactory:
    factory = DockerFactory(folders=folders, host=host, runtime=runtime)
    for instance in instances:
        if instance.image is None or not supplied:
            factory.identity(instance)
    return factory


def _namespace_for(instances: Sequence[Instance], folders: Sequence[Path]) -> NamespaceFactory:
    for instance in instances:
        if instance.tree is None:
            needs = "and its image" if instance.image is not None else "but names no image either"
            raise UserError(f"{instance.instance_id}: brings no tree along, so it needs Docker {needs}")
    if reason := probe():
        raise UserError(f"namespace sandboxes cannot be made here: {reason}")
    return NamespaceFactory(folders=folders)
