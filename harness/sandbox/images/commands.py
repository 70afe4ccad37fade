"""What `sweq images` does beside building: plan, pull, load, list."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.config import ImagesConfig
from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.docker import connect
from harness.sandbox.images.choice import daemon_id, make_source, manifest_cache
from harness.sandbox.images.daemon import DaemonStore, Echo
from harness.sandbox.images.estimates import estimate_layers
from harness.sandbox.images.ledger import Ledger, default_path, read_entries
from harness.sandbox.images.plan import Plan, order_instances, simulate
from harness.sandbox.images.registry import Registry
from harness.sandbox.images.shelf import Layer
from harness.sandbox.images.sources import list_archives, load_archive
from harness.sandbox.images.supply import DiskBudgetedSupply

_READERS = 8


def plan_images(
    instances: Sequence[Instance],
    registry: str | None,
    *,
    budget: int | None,
    prefetch: int,
    workers: int,
    passes: int,
    echo: Echo,
) -> Plan:
    """The plan for `instances`, from the manifests of `registry`, or from the table of estimates.

    Without `registry` none is asked: Docker Hub would count each manifest as a pull. Where a named registry does not
    answer, that is said through `echo`, and the plan is estimated.
    """
    wanted = [one for one in instances if one.image is not None]
    if not wanted:
        raise UserError("images plan: no instance of this dataset names an image; SWE-bench Verified's do")
    layers = {one.instance_id: estimate_layers(one) for one in wanted}
    source = "estimated (documented model, no manifests read)"
    if registry is not None:
        known = _read_all(wanted, Registry(registry, manifest_cache()), echo)
        layers.update(known)
        source = f"manifests of {registry}: {len(known)} of {len(wanted)}, on-disk sizes by factor"
        source += "" if len(known) == len(wanted) else "; the others estimated"
    return simulate(wanted, layers, source, budget=budget, prefetch=prefetch, workers=workers, passes=passes)


def pull_images(instances: Sequence[Instance], settings: ImagesConfig, echo: Echo, ledger: Path | None = None) -> int:
    """Bring the images of `instances`; they are the user's own from then on. Returns how many could not be brought.

    A disk budget ends the command before what it brings exceeds it: nothing is evicted here.
    """
    client = connect()
    wanted = [one for one in order_instances(instances) if one.image is not None]
    book = Ledger(ledger or default_path(daemon_id(client)))
    store = DaemonStore(client)
    budget = settings.disk_budget
    supply = DiskBudgetedSupply(
        store, make_source(settings, client), book, budget=budget, prefetch=0, echo=echo, evicts=False
    )
    failed = 0
    try:
        for number, one in enumerate(wanted, start=1):
            try:
                with supply.hold(one):
                    entry = book.entries.get(str(one.image))
                    book.drop(str(one.image))
                    what = entry.get("digest", "") if entry else "is here already"
                    echo(f"{number}/{len(wanted)} {one.image} {what}")
            except SandboxError as error:
                failed += 1
                echo(f"{number}/{len(wanted)} {error}")
    finally:
        supply.close()
    return failed


def load_images(place: Path, echo: Echo) -> None:
    """Load every archive that `place` is or holds."""
    client = connect()
    for file in list_archives(place):
        for name in load_archive(client, file):
            echo(f"{name}  from {file}")


def list_brought() -> list[str]:
    """One line for each image that a run brought to this daemon and may evict again."""
    client = connect()
    path = default_path(daemon_id(client))
    return [
        f"{image}  brought by a run from {entry.get('origin', 'an interrupted pull')}, {entry.get('digest', '')[:19]}"
        for image, entry in read_entries(path).items()
    ]


def _read_all(instances: Sequence[Instance], registry: Registry, echo: Echo) -> dict[str, tuple[Layer, ...]]:
    """On-disk layers of all images of which the registry has a manifest; the first failure is told."""
    known: dict[str, tuple[Layer, ...]] = {}
    problems: list[str] = []

    def read(one: Instance) -> None:
        if len(problems) >= _READERS:
            return
        try:
            known[one.instance_id] = registry.read_manifest(str(one.image)).on_disk
        except SandboxError as error:
            problems.append(str(error))

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(read, instances))
    registry.close()
    if problems:
        echo(f"{len(instances) - len(known)} manifests could not be read: {problems[0]}")
    return known
