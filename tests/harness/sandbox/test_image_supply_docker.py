"""A supply over a real daemon that pulls tiny images from a registry of our own."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from fake_registry import FakeRegistry, serve

from harness.config import ImagesConfig
from harness.errors import SandboxError, UserError
from harness.grading.runs import grade
from harness.instances import Instance, load_instances
from harness.sandbox.docker import DockerFactory
from harness.sandbox.images.choice import LocalSupply, make_supply
from harness.sandbox.images.commands import load_images, pull_images
from harness.sandbox.images.daemon import DaemonStore
from harness.sandbox.images.ledger import Ledger, read_entries
from harness.sandbox.images.registry import Registry
from harness.sandbox.images.sources import PullSource, TarSource
from harness.sandbox.images.supply import DiskBudgetedSupply
from harness.sandbox.select import choose, describe
from harness.sizes import format_size

pytestmark = pytest.mark.docker
KB = 1_000
BASE, ENVIRONMENT, OWN = 100 * KB, 100 * KB, 400 * KB
# Expected sizes are 2.5 times what is sent, until the first image has been measured. Three images take 1,400 KB.
ROOM_FOR_THREE = int(2.5 * (BASE + ENVIRONMENT + OWN)) + 20 * KB


@pytest.fixture(scope="module")
def client() -> docker.DockerClient:
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        pytest.skip(f"no Docker daemon answers: {error}")
    return client


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with serve() as registry:
        yield registry


@pytest.fixture
def instances(client: docker.DockerClient, registry: FakeRegistry) -> Iterator[list[Instance]]:
    """Eight instances in two environments, alternating, of names that nobody else has."""
    run = uuid.uuid4().hex[:8]
    row = load_instances("starter", limit=1)[0]
    made = []
    for number in range(8):
        name, environment = f"sweqtest-{run}/sweb.eval.x86_64.i{number}", f"{run}-env{number % 2}"
        layers = [(f"{run}-base", BASE), (environment, ENVIRONMENT), (f"{run}-{number}", OWN)]
        registry.add(name, layers)
        made.append(replace(row, instance_id=f"i{number}", version=environment, image=f"{name}:latest", tree=None))
    yield made
    for image in client.api.images():
        for tag in image["RepoTags"] or ():
            if f"sweqtest-{run}/" in tag:
                for container in client.containers.list(all=True, filters={"ancestor": tag}):
                    container.remove(force=True)
                client.images.remove(tag)


Make = Callable[..., DiskBudgetedSupply]


@pytest.fixture
def make(client: docker.DockerClient, registry: FakeRegistry, tmp_path: Path) -> Iterator[Make]:
    opened: list[DiskBudgetedSupply] = []

    def make_one(budget: int | None, prefetch: int = 0, source: TarSource | None = None, **rest: object) -> object:
        supply = DiskBudgetedSupply(
            DaemonStore(client),
            source or PullSource(client, Registry(registry.address)),
            Ledger(tmp_path / "ledger.json"),
            budget=budget,
            prefetch=prefetch,
            **{"echo": lambda line: None, "reserve": KB, "pause": 0.01, **rest},  # type: ignore[arg-type]
        )
        opened.append(supply)
        return supply

    yield make_one  # type: ignore[misc]
    for supply in opened:
        supply.close()


def here(client: docker.DockerClient, instances: list[Instance]) -> list[str]:
    # The plain list: `client.images.list` inspects each image, of which another test may have removed one meanwhile.
    tags = {tag for image in client.api.images() for tag in image["RepoTags"] or ()}
    return [one.instance_id for one in instances if one.image in tags]


def test_a_container_that_cannot_start_leaves_nothing_behind(
    client: docker.DockerClient, instances: list[Instance], make: Make
) -> None:
    """The tiny images have no bash. A container that was made would keep its image from being given up."""
    factory = DockerFactory()
    with make(None).hold(instances[0]), pytest.raises(SandboxError, match="bash"):
        factory.create(instances[0])
    assert client.containers.list(all=True, filters={"ancestor": str(instances[0].image)}) == []


def test_a_budget_of_three_images_runs_all_eight_in_order(
    client: docker.DockerClient, instances: list[Instance], registry: FakeRegistry, make: Make, tmp_path: Path
) -> None:
    held: dict[str, dict[str, str]] = {}
    budget = ROOM_FOR_THREE
    supply = make(budget, prefetch=1, on_held=held.__setitem__)
    ordered = supply.order(instances)
    assert [one.instance_id for one in ordered] == ["i0", "i2", "i4", "i6", "i1", "i3", "i5", "i7"]
    supply.prefetch(ordered)
    store = DaemonStore(client)
    for one in ordered:
        with supply.hold(one):
            assert one.instance_id in here(client, instances)
            layers = {layer for other in instances if (found := store.find(str(other.image))) for layer in found.layers}
            assert sum(layer.size for layer in layers) <= budget
    assert list(held) == [one.instance_id for one in ordered]
    assert all(identity["registry_digest"].startswith("sha256:") for identity in held.values())
    assert all(identity["origin"].startswith(registry.address) for identity in held.values())
    assert not any(registry.address in tag for image in client.api.images() for tag in image["RepoTags"] or ())
    assert supply.status().endswith(f" of {format_size(budget)}")
    assert len(here(client, instances)) <= 3
    assert set(read_entries(tmp_path / "ledger.json")) == {
        str(one.image) for one in instances if one.instance_id in here(client, instances)
    }


def test_the_users_own_images_stay(
    client: docker.DockerClient, instances: list[Instance], registry: FakeRegistry, make: Make, tmp_path: Path
) -> None:
    settings = ImagesConfig(source="pull", registry=registry.address)
    lines: list[str] = []
    assert pull_images(instances[:1], settings, lines.append, tmp_path / "other.json") == 0
    assert "sha256:" in lines[-1]
    supply = make(ROOM_FOR_THREE)
    for one in instances:
        with supply.hold(one):
            pass
    assert "i0" in here(client, instances)
    assert "i1" not in here(client, instances)


def test_pulling_ends_before_the_budget_is_exceeded(
    client: docker.DockerClient, instances: list[Instance], registry: FakeRegistry, tmp_path: Path
) -> None:
    settings = ImagesConfig(source="pull", registry=registry.address, disk_budget=1_800 * KB)
    with pytest.raises(UserError, match=r"images\.disk_budget: .* would make it .*; stopped before that"):
        pull_images(instances, settings, lambda line: None, tmp_path / "other.json")
    assert 0 < len(here(client, instances)) < 8
    assert not read_entries(tmp_path / "other.json")


def test_rate_limits_and_truncated_blobs_are_survived(
    client: docker.DockerClient, instances: list[Instance], registry: FakeRegistry, make: Make
) -> None:
    said: list[str] = []
    supply = make(None, echo=said.append)
    supply.order(instances[:1])
    registry.limited, registry.truncated = 2, 1
    with supply.hold(instances[0]):
        assert here(client, instances) == ["i0"]
    assert any("rate limit" in line and "going on in" in line for line in said), said
    assert (registry.limited, registry.truncated) == (0, 0)


def test_an_image_that_is_not_there_is_one_line(instances: list[Instance], make: Make) -> None:
    supply = make(None)
    missing = replace(instances[0], instance_id="none", image="sweqtest-none/none:latest")
    with pytest.raises(SandboxError, match="cannot be pulled from 127") as caught, supply.hold(missing):
        pass
    assert "\n" not in str(caught.value)


def test_a_killed_supply_is_taken_up_again(
    client: docker.DockerClient, instances: list[Instance], registry: FakeRegistry, make: Make, tmp_path: Path
) -> None:
    """Killed while it holds one image and another is on its way: both are known as ours, and the run goes on."""
    pairs = [(one.instance_id, one.image) for one in instances[:2]]
    script = f"""
import sys, time
from dataclasses import replace
from pathlib import Path
from harness.instances import load_instances
from harness.sandbox.docker import connect
from harness.sandbox.images.daemon import DaemonStore
from harness.sandbox.images.ledger import Ledger
from harness.sandbox.images.registry import Registry
from harness.sandbox.images.sources import PullSource
from harness.sandbox.images.supply import DiskBudgetedSupply
client = connect()
supply = DiskBudgetedSupply(DaemonStore(client), PullSource(client, Registry({registry.address!r})),
    Ledger(Path({str(tmp_path / "ledger.json")!r})), budget=None, prefetch=1, echo=print, reserve=1000, pause=60)
row = load_instances("starter", limit=1)[0]
one, two = [replace(row, instance_id=i, image=m, tree=None) for i, m in {pairs}]
with supply.hold(one):
    print("held", flush=True)
    sys.stdin.readline()
    supply.prefetch([two])
    time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    registry.limited, registry.retry_after = 1_000, "60"
    process.stdin.write("\n")
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while str(instances[1].image) not in read_entries(tmp_path / "ledger.json") and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(UserError, match="another sweq manages the images"):
        Ledger(tmp_path / "ledger.json")
    process.kill()
    process.communicate()
    registry.limited = 0
    assert set(read_entries(tmp_path / "ledger.json")) == {one.image for one in instances[:2]}
    supply = make(ROOM_FOR_THREE)
    assert set(read_entries(tmp_path / "ledger.json")) == {instances[0].image}
    for one in instances[1:]:
        with supply.hold(one):
            pass
    assert "i0" not in here(client, instances)


def test_archives_are_found_by_name_and_by_content(
    client: docker.DockerClient, instances: list[Instance], registry: FakeRegistry, make: Make, tmp_path: Path
) -> None:
    settings = ImagesConfig(source="pull", registry=registry.address)
    pull_images(instances[:2], settings, lambda line: None, tmp_path / "other.json")
    folder = tmp_path / "archives"
    folder.mkdir()
    for one, name in zip(instances[:2], ["i0.tar", "of-another-name.tar"], strict=True):
        (folder / name).write_bytes(b"".join(client.images.get(str(one.image)).save(named=True)))
        client.images.remove(str(one.image))
    source = TarSource(client, folder)
    expected = source.expect(instances[1])
    supply = make(3_000 * KB, source=source)
    for one in instances[:2]:
        with supply.hold(one):
            assert one.instance_id in here(client, instances)
    found = DaemonStore(client).find(str(instances[1].image))
    assert found is not None
    assert [layer.key for layer in expected] == [layer.key for layer in found.layers]
    with pytest.raises(SandboxError, match=r"no archive of .*; save one as i2\.tar"), supply.hold(instances[2]):
        pass
    lines: list[str] = []
    load_images(folder, lines.append)
    assert len(lines) == 2


def test_grading_brings_what_it_needs_and_records_it(
    client: docker.DockerClient,
    instances: list[Instance],
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The image has no shell, so the container cannot start; it was brought, held and recorded all the same."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("harness.grading.runs.load_instances", lambda *_: instances)
    images = ImagesConfig(source="pull", registry=registry.address, disk_budget=ROOM_FOR_THREE, prefetch=1)
    options = {"sandbox": "docker", "results": tmp_path, "images": images, "workers": 1, "echo": lambda line: None}
    assert grade("any", "gold", ["i0", "i2"], "run", **options) == 1  # type: ignore[arg-type]
    recorded = json.loads((tmp_path / "run/images.json").read_text())
    assert set(recorded) == {"i0", "i2"}
    assert all(identity["registry_digest"].startswith("sha256:") for identity in recorded.values())
    assert here(client, instances) == ["i0", "i2"]
    assert len(read_entries(next((tmp_path / "state/sweq").glob("images-*.json")))) == 2


def test_without_a_supply_a_missing_image_is_refused_at_once(instances: list[Instance], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="i0: no image sweqtest-"):
        choose("docker", instances)
    factory = choose("docker", instances, supplied=True)
    assert isinstance(factory, DockerFactory)
    assert describe(factory, instances, supplied=True) == {"names": ["docker"], "images": {}}
    assert isinstance(make_supply(ImagesConfig(), factory, instances), LocalSupply)
