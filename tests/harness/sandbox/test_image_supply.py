"""Shelf, plan, registry and supply without a daemon: the policy on a simulated disk, and one line for every mistake."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fake_registry import FakeRegistry, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import ImagesConfig, make_images_config
from harness.errors import SandboxError, UserError
from harness.instances import Instance, load_instances
from harness.sandbox.images.daemon import Found, measure_layers
from harness.sandbox.images.estimates import estimate_layers
from harness.sandbox.images.ledger import Ledger, read_entries
from harness.sandbox.images.plan import order_instances, render, simulate
from harness.sandbox.images.registry import RateLimitedError, Registry, read_retry_after
from harness.sandbox.images.shelf import Layer, Shelf
from harness.sandbox.images.sources import list_archives, read_names
from harness.sandbox.images.supply import DiskBudgetedSupply
from harness.sizes import format_size, parse_size

ROW = load_instances("starter", limit=1)[0]


def make_instance(name: str, version: str = "1", repo: str = "a/b") -> Instance:
    return replace(ROW, instance_id=name, image=f"img/{name}:latest", version=version, repo=repo, tree=None)


class SimulatedDisk:
    """An `ImageStore` and `ImageSource` in one; complains where an image goes that must stay."""

    limits_reads = False

    def __init__(self, images: dict[str, tuple[Layer, ...]], free: int | None = None, factor: float = 1.0) -> None:
        self.catalogue, self.free, self.factor = images, free, factor
        self.present: dict[str, tuple[Layer, ...]] = {}
        self.protected: set[str] = set()
        self.removed: list[str] = []
        self.peak, self.problems, self.lock = 0, [Exception() for _ in ()], threading.Lock()

    def total(self) -> int:
        return sum({layer.key: layer.size for layers in self.present.values() for layer in layers}.values())

    def find(self, name: str) -> Found | None:
        with self.lock:
            layers = self.present.get(name)
        return Found(f"id:{name}", "", "official", layers) if layers is not None else None

    def remove(self, name: str) -> bool:
        assert name not in self.protected, name
        with self.lock:
            self.present.pop(name, None)
        self.removed.append(name)
        return True

    def free_bytes(self) -> int | None:
        return None if self.free is None else self.free - self.total()

    def expect(self, instance: Instance) -> tuple[Layer, ...]:
        return tuple(Layer(one.key, int(one.size / self.factor)) for one in self.catalogue[str(instance.image)])

    def bring(self, image: str, instance_id: str) -> str:
        if self.problems:
            raise self.problems.pop()
        with self.lock:
            self.present[image] = self.catalogue[image]
            self.peak = max(self.peak, self.total())
        return f"disk/{image}"

    def temporary_name(self, image: str) -> str | None:
        return None


def make_supply(disk: SimulatedDisk, folder: Path, budget: int | None, **rest: object) -> DiskBudgetedSupply:
    options = {"prefetch": 0, "echo": lambda line: None, "reserve": 0, "pause": 0.001, **rest}
    return DiskBudgetedSupply(disk, disk, Ledger(folder / "ledger.json"), budget=budget, **options)  # type: ignore[arg-type]


images = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.lists(st.sampled_from([Layer(key, size) for key, size in zip("pqrstuv", (1, 2, 3, 5, 8, 13, 21), strict=True)]),
             min_size=1, unique=True).map(tuple),
    min_size=1,
)  # fmt: skip
moves = st.lists(st.tuples(st.sampled_from(["bring", "hold", "release"]), st.sampled_from("abcdefgh")), max_size=60)


@given(catalogue=images, moves=moves, budget=st.integers(1, 60), own=st.sets(st.sampled_from("abcdefgh"), max_size=2))
def test_the_policy_keeps_within_budget_and_gives_up_the_least_recently_used(
    catalogue: dict[str, tuple[Layer, ...]], moves: list[tuple[str, str]], budget: int, own: set[str]
) -> None:
    shelf, used, holds, clock = Shelf(), {}, dict.fromkeys("abcdefgh", 0), 0
    for name in own & set(catalogue):
        shelf.put(name, catalogue[name], owned=False)
    for move, name in moves:
        clock += 1
        if move == "bring" and name in catalogue and name not in shelf:
            candidates = sorted((one for one in used if not holds[one]), key=used.__getitem__)
            victims = shelf.choose_victims(catalogue[name], budget)
            if victims is None:
                assert shelf.total_with(catalogue[name], candidates) > budget
                continue
            assert victims == candidates[: len(victims)]
            assert not victims or shelf.total_with(catalogue[name], victims[:-1]) > budget
            for victim in victims:
                shelf.drop(victim)
                del used[victim]
            shelf.put(name, catalogue[name], owned=True)
            used[name] = clock
            free = {layer.key for one in own & set(catalogue) for layer in catalogue[one]}
            real = {layer.key: layer.size for one in used for layer in catalogue[one] if layer.key not in free}
            assert shelf.total() == sum(real.values()) <= budget
        elif move == "hold" and name in used:
            shelf.hold(name)
            holds[name], used[name] = holds[name] + 1, clock
        elif move == "release" and holds[name]:
            shelf.release(name)
            holds[name], used[name] = holds[name] - 1, clock
    assert own & set(catalogue) <= set(shelf.names)


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), workers=st.integers(1, 4), ahead=st.integers(0, 3))
def test_threads_get_through_any_run_within_the_budget(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], workers: int, ahead: int
) -> None:
    """The budget holds the largest image and no more: threads must wait for one another, and all must end."""
    instances = [make_instance(f"i{number}", str(number % 2)) for number in range(len(sizes))]
    layers = {str(one.image): (Layer(f"env{one.version}", 7), Layer(one.instance_id, size))
              for one, size in zip(instances, sizes, strict=True)}  # fmt: skip
    disk, budget = SimulatedDisk(layers), max(sizes) + 7
    supply = make_supply(disk, tmp_path_factory.mktemp("run"), budget, prefetch=ahead)
    supply.prefetch(instances)
    left, done, lock = list(reversed(instances)), [], threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not left:
                    return
                one = left.pop()
            with supply.hold(one):
                disk.protected.add(str(one.image))
                assert disk.find(str(one.image)) is not None
                done.append(one.instance_id)
                disk.protected.discard(str(one.image))

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    supply.close()
    assert sorted(done) == sorted(one.instance_id for one in instances)
    assert disk.peak <= budget


def test_sizes_larger_than_expected_push_others_out(tmp_path: Path) -> None:
    instances = [make_instance(f"i{number}") for number in range(6)]
    disk = SimulatedDisk({str(one.image): (Layer(one.instance_id, 30),) for one in instances}, factor=3.0)
    supply = make_supply(disk, tmp_path, 100)
    for one in instances:
        with supply.hold(one):
            assert disk.total() <= 100
    assert disk.peak <= 120  # only the second could be misjudged; from then on the measured ratio counts
    assert disk.removed == [str(one.image) for one in instances[:3]]
    supply.close()


def test_the_disk_keeps_its_reserve(tmp_path: Path) -> None:
    instances = [make_instance(f"i{number}") for number in range(5)]
    disk = SimulatedDisk({str(one.image): (Layer(one.instance_id, 30),) for one in instances}, free=150)
    supply = make_supply(disk, tmp_path, None, reserve=40)
    for one in instances:
        with supply.hold(one):
            pass
    assert disk.peak <= 150 - 40
    assert disk.removed
    disk.catalogue[str(instances[0].image)] = (Layer("huge", 500),)
    supply._expectations.clear()
    with pytest.raises(SandboxError, match="no room on Docker's disk: 500 B to come"), supply.hold(instances[0]):
        pass
    supply.close()


def test_rate_limits_are_waited_out_and_failures_tried_again(tmp_path: Path) -> None:
    one, said = make_instance("i0"), []
    disk = SimulatedDisk({str(one.image): (Layer("x", 1),)})
    disk.problems = [RateLimitedError("toomanyrequests", seconds) for seconds in (None, 0.01, None, None, None, None)]
    disk.problems.insert(3, SandboxError("reset by peer"))
    supply = make_supply(disk, tmp_path, 10, echo=said.append)
    with supply.hold(one):
        assert sum("rate limit: toomanyrequests; going on in" in line for line in said) == 6
        assert any("reset by peer; attempt 2 of 4 follows" in line for line in said)
    disk.remove(str(one.image))
    disk.problems = [SandboxError("broken") for _ in range(4)]
    with pytest.raises(SandboxError, match="broken"), supply.hold(one):
        pass
    assert read_entries(tmp_path / "ledger.json") == {}
    supply.close()


def test_an_image_larger_than_the_budget_is_the_users_mistake(tmp_path: Path) -> None:
    one = make_instance("i0")
    supply = make_supply(SimulatedDisk({str(one.image): (Layer("x", 2_000),)}), tmp_path, 1_000)
    expected = (
        r"^images\.disk_budget: 1 kB cannot hold img/i0:latest alone, which takes about 2 kB; set more than that$"
    )
    with pytest.raises(UserError, match=expected), supply.hold(one):
        pass
    supply.close()


def test_a_restart_knows_what_is_ours(tmp_path: Path) -> None:
    instances = [make_instance(f"i{number}") for number in range(4)]
    disk = SimulatedDisk({str(one.image): (Layer(one.instance_id, 30),) for one in instances})
    disk.bring(str(instances[3].image), "i3")
    first = make_supply(disk, tmp_path, 60)
    for one in (instances[3], instances[0], instances[1]):
        with first.hold(one):
            pass
    first.close()
    second = make_supply(disk, tmp_path, 60)
    with second.hold(instances[0]), second.hold(instances[2]):
        assert disk.removed == [instances[1].image]
    assert str(instances[3].image) in disk.present
    second.close()


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text("[1]")
    with pytest.raises(UserError, match="not a list of images that sweq wrote"):
        Ledger(tmp_path / "ledger.json")


def test_order_puts_shared_layers_side_by_side() -> None:
    instances = [make_instance("a", "1"), make_instance("b", "2"), make_instance("c", "1"), make_instance("d", "2")]
    assert [one.instance_id for one in order_instances(instances)] == ["a", "c", "b", "d"]
    known = {"a": (Layer("p", 1),), "b": (Layer("q", 1),), "c": (Layer("q", 1),), "d": (Layer("p", 1),)}
    assert [one.instance_id for one in order_instances(instances, known)] == ["a", "d", "b", "c"]


def test_a_plan_adds_up() -> None:
    instances = [make_instance(f"i{number}", str(number % 2)) for number in range(8)]
    layers = {one.instance_id: (Layer("base", 10), Layer(f"e{one.version}", 5), Layer(one.instance_id, 20))
              for one in instances}  # fmt: skip
    plan = simulate(instances, layers, "test", budget=80, prefetch=1, workers=1)
    assert (plan.unique_bytes, plan.pulls, plan.evictions) == (10 + 2 * 5 + 8 * 20, 8, 5)
    assert plan.peak_bytes == 80
    assert plan.order == ["i0", "i2", "i4", "i6", "i1", "i3", "i5", "i7"]
    assert sum(one.size * (1 if one.kind == "pull" else -1) for one in plan.events) == plan.events[-1].total
    again = simulate(instances, layers, "test", budget=80, workers=1, passes=2)
    assert again.pulls == 16
    assert json.loads(json.dumps(again.as_json()))["hub_hours"] == 0
    assert "pulls                    16, of which 8 again" in render(again)
    with pytest.raises(UserError, match=r"--disk-budget 60 B: too small for i4 .* at least 75 B here"):
        simulate(instances, layers, "test", budget=60, workers=3)


def test_the_model_adds_up_to_what_is_published() -> None:
    """189 GiB for all of Verified: 80 environments, and instances by repository (facts of the data set)."""
    counts = {"django/django": 231, "sympy/sympy": 75, "sphinx-doc/sphinx": 44, "matplotlib/matplotlib": 34,
              "scikit-learn/scikit-learn": 32, "astropy/astropy": 22, "pydata/xarray": 22, "pytest-dev/pytest": 19,
              "pylint-dev/pylint": 10, "psf/requests": 8, "mwaskom/seaborn": 2, "pallets/flask": 1}  # fmt: skip
    base, environment, _ = estimate_layers(make_instance("x"))
    own = sum(estimate_layers(make_instance("x", repo=repo))[2].size * count for repo, count in counts.items())
    assert sum(counts.values()) == 500
    assert base.size + 80 * environment.size + own == pytest.approx(189 * 2**30, rel=0.005)


def test_layers_are_measured_from_the_history() -> None:
    steps = ((5, "RUN x"), (0, "ENV a=b"), (0, "WORKDIR /"), (7, "ADD y"))
    history = [{"Size": size, "CreatedBy": step} for size, step in steps]
    assert measure_layers(2, history, 12) == [7, 5]
    assert measure_layers(3, history, 12) == [7, 0, 5]
    assert measure_layers(5, history, 12) == [4, 2, 2, 2, 2]


def test_manifests_are_read_through_a_login_and_an_index_and_kept(tmp_path: Path) -> None:
    with serve() as server:
        digest = server.add("swebench/x", [("base", 1_000), ("own", 2_000)])
        registry = Registry(server.address, tmp_path)
        manifest = registry.read_manifest("swebench/x:latest")
        assert manifest.digest != digest
        assert [layer.key for layer in manifest.layers] == [
            key for key in server.blobs if key in {layer.key for layer in manifest.layers}
        ]
        assert [layer.size for layer in manifest.layers] == [len(server.blobs[layer.key]) for layer in manifest.layers]
        asked = server.requests.total()
        assert Registry(server.address, tmp_path).read_manifest("swebench/x:latest") == manifest
        assert server.requests.total() == asked
        check_faults(server, Registry(server.address))


def check_faults(server: FakeRegistry, registry: Registry) -> None:
    server.limited, server.retry_after = 2, "7"
    with pytest.raises(RateLimitedError) as caught:
        registry.read_manifest("swebench/x:latest")
    assert caught.value.seconds == 7
    assert registry.retry_after("swebench/x:latest") == 7
    assert registry.retry_after("swebench/x:latest") is None
    with pytest.raises(SandboxError, match=r"swebench/none:latest: 127\.0\.0\.1:\d+ answered 404"):
        registry.read_manifest("swebench/none:latest")
    with pytest.raises(SandboxError, match=r"registry 127\.0\.0\.1:1 does not answer: ConnectError"):
        Registry("127.0.0.1:1").read_manifest("swebench/x:latest")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_names_are_read_from_archives(tmp_path: Path, suffix: str) -> None:
    if suffix == ".tar.zst" and shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    manifest = json.dumps([{"RepoTags": ["img/i0:latest"]}, {"RepoTags": None}]).encode()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in (("layer", bytes(3_000_000)), ("manifest.json", manifest), ("more", bytes(3_000_000))):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    file = tmp_path / f"x{suffix}"
    if suffix == ".tar.gz":
        file.write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    elif suffix == ".tar.zst":
        subprocess.run(["zstd", "-q", str(tmp_path / "x.tar"), "-o", str(file)], check=True)
    assert read_names(file) == ["img/i0:latest"]
    file.write_bytes(b"something else")
    with pytest.raises(SandboxError, match=r"not an archive of `docker save`|zstd cannot read it"):
        read_names(file)
    with pytest.raises(UserError, match="neither an archive of `docker save`"):
        list_archives(tmp_path / "none")


def test_where_an_image_is_at_a_registry() -> None:
    image = "swebench/sweb.eval.x86_64.a_1776_b-1:latest"
    assert Registry().locate(image) == ("swebench/sweb.eval.x86_64.a_1776_b-1", "latest")
    assert Registry("h.example:5000/p/q").locate(image) == (
        "h.example:5000/p/q/swebench/sweb.eval.x86_64.a_1776_b-1",
        "latest",
    )
    assert Registry("docker.io/mine").locate("a/b:1") == ("docker.io/mine/a/b", "1")
    assert Registry("h.example").locate("plain") == ("h.example/plain", "latest")


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", None)])
def test_retry_after(value: str, seconds: float | None) -> None:
    assert read_retry_after({"Retry-After": value}) == seconds
    assert read_retry_after({}) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("40G", 40 * 10**9), ("512MiB", 2**29), ("1.5 TB", 15 * 10**11), ("7", 7), (12, 12), ("3kb", 3000)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "40X", "-1", "0", "1e3", "inf", True, None, "40 G B"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(text)


@given(st.integers(1, 10**15))
def test_a_printed_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.006)


def test_options_of_the_command_line() -> None:
    assert make_images_config(None, None, None) == ImagesConfig()
    assert make_images_config(None, None, "1G").disk_budget == 10**9
    assert make_images_config("h:5000/x", None, None).source == "pull"
    with pytest.raises(UserError, match=r"^--disk-budget: expected a size such as 40G or 512MiB, not '5Q'$"):
        make_images_config(None, None, "5Q")
    with pytest.raises(UserError, match=r"^--registry: expected HOST\[:PORT\]\[/prefix\], not 'http://h'$"):
        make_images_config("http://h", None, None)
