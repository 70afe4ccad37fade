"""Brings images just in time, and gives up those that were used longest ago, so that a run fits on a small disk.

Room is reserved before a pull begins: with the layers that the image is expected to have, corrected by how wrong the
expectations were so far, the images here must stay within the budget, and the disk of the daemon must keep a reserve.
When an image has arrived its measured layers take the place of the expected ones. Nobody waits with an image in hand
for another, so waiting for room always ends: with a release, or, where nobody holds anything, with an error.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.images.daemon import Echo, Found, ImageStore
from harness.sandbox.images.estimates import EXPANSION, estimate_layers
from harness.sandbox.images.ledger import Ledger
from harness.sandbox.images.plan import order_instances
from harness.sandbox.images.registry import RateLimitedError
from harness.sandbox.images.shelf import Layer, Shelf
from harness.sandbox.images.sources import ImageSource, LastingError
from harness.sizes import format_size

RESERVE = 5_000_000_000
"""Bytes of the daemon's disk that are left free for containers and for the rest of the machine."""

_ATTEMPTS = 4
_READERS = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 15.0, 1_800.0

OnHeld = Callable[[str, dict[str, str]], None]


class DiskBudgetedSupply:
    """An `ImageSupply` within `budget` bytes (None: only the disk limits). Takes over `ledger` and closes it.

    `uses(instance)` says whether an instance needs an image at all. `on_held(instance_id, identity)` hears once of
    every image that is held, from the thread that holds it.
    Without `evicts` nothing is given up; an image for which there is no room is then a `UserError`.
    """

    def __init__(
        self,
        store: ImageStore,
        source: ImageSource,
        ledger: Ledger,
        *,
        budget: int | None,
        prefetch: int,
        echo: Echo,
        uses: Callable[[Instance], bool] = lambda instance: instance.image is not None,
        on_held: OnHeld = lambda instance_id, identity: None,
        evicts: bool = True,
        reserve: int = RESERVE,
        pause: float = _FIRST_PAUSE,
    ) -> None:
        self._store, self._source, self._ledger = store, source, ledger
        self._budget, self._ahead, self._reserve, self._pause = budget, prefetch, reserve, pause
        self._echo, self._uses, self._on_held, self._evicts = echo, uses, on_held, evicts
        self._shelf = Shelf()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._incoming: dict[str, tuple[Layer, ...]] = {}
        self._queue: list[Instance] = []
        self._ready: set[str] = set()
        self._stuck: set[str] = set()
        self._told: set[str] = set()
        self._expected_bytes = self._measured_bytes = 0.0
        self._not_before = 0.0
        self._taken = 0
        self._expectations: dict[str, tuple[Layer, ...]] = {}
        self._recover()
        self._thread: threading.Thread | None = None

    def order(self, instances: Sequence[Instance]) -> list[Instance]:
        """See `ImageSupply.order`: by the layers that the source knows, else by repository and version."""
        if self._source.limits_reads:
            return order_instances(instances)
        wanted = [one for one in instances if self._uses(one)]
        with ThreadPoolExecutor(_READERS) as pool:
            chains = list(pool.map(self._expect_leniently, wanted))
        layers = {one.instance_id: chain for one, chain in zip(wanted, chains, strict=True)}
        return order_instances(instances, layers)

    def prefetch(self, instances: Sequence[Instance]) -> None:
        """See `ImageSupply.prefetch`; instances join the queue unless they are in it."""
        with self._changed:
            queued = {one.instance_id for one in self._queue}
            self._queue += [one for one in instances if self._uses(one) and one.instance_id not in queued]
            if self._thread is None and self._ahead and not self._stop.is_set():
                self._thread = threading.Thread(target=self._prefetch_all, name="sweq-images", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @contextlib.contextmanager
    def hold(self, instance: Instance) -> Iterator[None]:
        """See `ImageSupply.hold`."""
        if not self._uses(instance):
            yield
            return
        image = str(instance.image)
        self._unqueue(instance)
        self._bring(instance, hold=True)
        try:
            self._tell(instance)
            yield
        finally:
            with self._changed:
                self._shelf.release(image)
                self._changed.notify_all()

    def status(self) -> str:
        """See `ImageSupply.status`. While an image is being given up it says what it said last, and does not wait."""
        if self._changed.acquire(blocking=False):
            try:
                self._taken = self._shelf.total()
            finally:
                self._changed.release()
        here = format_size(self._taken)
        return here if self._budget is None else f"{here} of {format_size(self._budget)}"

    def close(self) -> None:
        """See `ImageSupply.close`. Images stay, and are ours to evict for the next run."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._ledger.close()

    def _recover(self) -> None:
        """Take up what an earlier process left: what it brought is ours, and what it did not finish goes."""
        for image, entry in list(self._ledger.entries.items()):
            if entry.get("temporary"):
                self._store.remove(entry["temporary"])
            found = self._store.find(image)
            if found is None:
                self._ledger.drop(image)
            else:
                self._shelf.put(image, found.layers, owned=True)

    def _bring(self, instance: Instance, *, hold: bool) -> bool:
        """Have the image here, and hold it at once for a holder; the prefetcher gets False where it is in the way."""
        image = str(instance.image)
        expected = self._expect(instance)
        with self._changed:
            if not self._wait_for_turn(image, expected, hold=hold):
                return False
            if image in self._shelf:
                if hold:
                    self._shelf.hold(image)
                return True
            self._incoming[image] = expected
            self._shelf.put(image, self._correct(expected), owned=True)
            self._ledger.note(image, instance=instance.instance_id, temporary=self._source.temporary_name(image))
        try:
            self._fetch(instance, expected, hold=hold)
        except (SandboxError, UserError):
            self._give_up(image)
            raise
        finally:
            with self._changed:
                self._incoming.pop(image)
                self._changed.notify_all()
        return True

    def _wait_for_turn(self, image: str, expected: Sequence[Layer], *, hold: bool) -> bool:
        """Wait until the image is here, or there is room for it that nobody else takes; the lock is held."""
        while not self._stop.is_set():
            if image not in self._incoming:
                if self._is_here(image) or self._make_room(image, self._correct(expected), hold=hold):
                    return True
                if not hold:
                    return False
            self._changed.wait(1.0)
        raise SandboxError(f"{image}: the run was stopped")

    def _give_up(self, image: str) -> None:
        with self._changed:
            self._shelf.drop(image)
            self._ledger.drop(image)

    def _expect(self, instance: Instance) -> tuple[Layer, ...]:
        """Expected layers of the instance's image, uncorrected; a source that cannot say now is asked again later."""
        if instance.instance_id not in self._expectations:
            try:
                self._expectations[instance.instance_id] = self._source.expect(instance)
            except LastingError:
                raise
            except SandboxError as error:
                self._echo(f"{instance.instance_id}: layers estimated, since {error}")
                return estimate_layers(instance)
        return self._expectations[instance.instance_id]

    def _expect_leniently(self, instance: Instance) -> tuple[Layer, ...]:
        """For the order a guess will do; whoever holds the image hears of what is wrong."""
        try:
            return self._expect(instance)
        except SandboxError:
            return estimate_layers(instance)

    def _is_here(self, image: str) -> bool:
        """Whether the daemon has it; somebody else may have brought or removed it in the meantime."""
        found = self._store.find(image)
        if found is None:
            self._shelf.drop(image)
            self._ledger.drop(image)
        elif image not in self._shelf:
            self._shelf.put(image, found.layers, owned=False)
        return found is not None

    def _make_room(self, image: str, layers: Sequence[Layer], *, hold: bool) -> bool:
        """Make room for `layers`, giving up images for it; False while that has to wait.

        Images that were brought ahead go last, and only for a holder. Raises `UserError` where the image can never
        fit, `SandboxError` where the disk is full of what is not ours.
        """
        if self._budget is not None and sum(layer.size for layer in layers) > self._budget:
            raise UserError(self._describe_too_large(image, layers))
        while True:
            limit, fixed = self._find_limit(layers), self._stuck | set(self._incoming)
            victims = self._shelf.choose_victims(layers, limit, fixed | self._ready) if self._evicts else None
            if victims is None:
                kept = fixed if self._evicts else set(self._shelf.names)
                victims = self._shelf.choose_victims(layers, limit, kept if hold else set(self._shelf.names))
            if victims is None:
                if hold and not self._shelf.held and not self._incoming:
                    self._refuse(image, layers)
                return False
            if not victims:
                return True
            self._evict(victims[0])

    def _find_limit(self, layers: Sequence[Layer]) -> float:
        """Bytes that all images together may take: the budget, or less where the disk has less.

        A pull needs the compressed layers on the disk, too, until they are unpacked; what is on its way is not yet.
        """
        limit = float("inf") if self._budget is None else self._budget
        free = self._store.free_bytes()
        if free is None:
            return limit
        coming = sum(layer.size for expected in self._incoming.values() for layer in expected)
        packed = self._shelf.missing(layers) / EXPANSION
        return min(limit, self._shelf.total() + free - self._reserve - coming - packed)

    def _describe_too_large(self, image: str, layers: Sequence[Layer]) -> str:
        size = format_size(sum(layer.size for layer in layers))
        return (
            f"images.disk_budget: {format_size(self._budget or 0)} cannot hold {image} alone, "
            f"which takes about {size}; set more than that"
        )

    def _refuse(self, image: str, layers: Sequence[Layer]) -> None:
        total = self._shelf.total_with(layers)
        if not self._evicts and self._budget is not None and total > self._budget:
            raise UserError(f"images.disk_budget: {image} would make it {format_size(total)}; stopped before that")
        self._stuck.clear()
        free = self._store.free_bytes() or 0
        raise SandboxError(
            f"{image}: no room on Docker's disk: {format_size(self._shelf.missing(layers))} to come, "
            f"{format_size(free)} free, of which {format_size(self._reserve)} stay in reserve"
        )

    def _evict(self, image: str) -> None:
        if not self._store.remove(image):
            self._stuck.add(image)
            self._echo(f"{image}: still used by a container, so it stays")
            return
        self._shelf.drop(image)
        self._ready.discard(image)
        self._ledger.drop(image)

    def _fetch(self, instance: Instance, expected: tuple[Layer, ...], *, hold: bool) -> None:
        image = str(instance.image)
        origin = self._retry(image, lambda: self._source.bring(image, instance.instance_id))
        found = self._store.find(image)
        if found is None:
            raise SandboxError(f"{image}: brought from {origin}, yet the daemon does not have it")
        with self._changed:
            digest = found.digest or origin.partition("@")[2]
            self._ledger.note(image, origin=origin, digest=digest, id=found.image_id, temporary=None)
            self._settle(image, expected, found)
            if hold:
                self._shelf.hold(image)

    def _settle(self, image: str, expected: tuple[Layer, ...], found: Found) -> None:
        """Measured layers replace the expected ones, whose names stay as aliases: others are expected to share them.

        What turned out larger than expected pushes others out.
        """
        self._shelf.drop(image)
        self._expected_bytes += self._shelf.missing(expected)
        self._measured_bytes += self._shelf.missing(found.layers)
        measured = {layer.key for layer in found.layers}
        aliases = [Layer(layer.key, 0) for layer in expected if layer.key not in measured]
        self._shelf.put(image, [*found.layers, *aliases], owned=True)
        if self._budget is None or not self._evicts:
            return
        if sum(layer.size for layer in found.layers) > self._budget:
            self._store.remove(image)
            raise UserError(self._describe_too_large(image, found.layers))
        while self._shelf.total() > self._budget:
            victims = self._shelf.choose_victims((), self._budget, {image, *self._stuck, *self._incoming})
            if not victims:
                self._echo(f"{image}: larger than expected; {format_size(self._shelf.total())} until others are done")
                return
            self._evict(victims[0])

    def _correct(self, expected: Sequence[Layer]) -> tuple[Layer, ...]:
        """`expected` times the bytes that an expected byte turned out to be so far, at least a half."""
        ratio = max(0.5, self._measured_bytes / self._expected_bytes) if self._expected_bytes else 1.0
        return tuple(Layer(layer.key, int(layer.size * ratio)) for layer in expected)

    def _retry(self, image: str, bring: Callable[[], str]) -> str:
        """Bring through rate limits, however long they last, and through a few failures of other kinds."""
        limited = failed = 0
        while True:
            self._sleep(image, self._not_before - time.monotonic())
            try:
                return bring()
            except LastingError:
                raise
            except RateLimitedError as error:
                limited += 1
                delay = error.seconds or min(self._pause * 2 ** (limited - 1), _LONGEST_PAUSE)
                delay *= random.uniform(1.0, 1.25)
                self._not_before = max(self._not_before, time.monotonic() + delay)
                self._echo(f"rate limit: {error}; going on in {delay:.0f} s")
            except SandboxError as error:
                failed += 1
                if failed == _ATTEMPTS:
                    raise
                self._echo(f"{error}; attempt {failed + 1} of {_ATTEMPTS} follows")
                self._sleep(image, self._pause * 2 ** (failed - 1) * random.uniform(1.0, 1.25))

    def _sleep(self, image: str, seconds: float) -> None:
        if self._stop.wait(max(0.0, seconds)):
            raise SandboxError(f"{image}: the run was stopped")

    def _tell(self, instance: Instance) -> None:
        """Note what is held: the run's record once, the ledger always, for it knows what was used last."""
        image = str(instance.image)
        with self._changed:
            self._ready.discard(image)
            self._changed.notify_all()
            entry = self._ledger.entries.get(image)
            if entry is not None:
                self._ledger.note(image)
            if instance.instance_id in self._told:
                return
            self._told.add(instance.instance_id)
        found = self._store.find(image)
        if found is None:
            raise SandboxError(f"{image}: removed by somebody else while it was wanted")
        identity = {"image": image, "digest": found.image_id, "source": found.source}
        if entry is not None:
            identity |= {"registry_digest": str(entry.get("digest", "")), "origin": str(entry.get("origin", ""))}
        self._on_held(instance.instance_id, identity)

    def _unqueue(self, instance: Instance) -> None:
        with self._changed:
            self._queue = [one for one in self._queue if one.instance_id != instance.instance_id]

    def _prefetch_all(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                if not self._queue or len(self._ready) >= self._ahead:
                    self._changed.wait(1.0)
                    continue
                instance = self._queue[0]
            try:
                brought = self._bring(instance, hold=False)
            except (SandboxError, UserError) as error:
                if not self._stop.is_set():
                    self._echo(f"prefetch: {error}")
                brought = None
            with self._changed:
                if brought is False:
                    self._changed.wait(1.0)
                elif instance in self._queue:
                    self._queue.remove(instance)
                    if brought:
                        self._ready.add(str(instance.image))
