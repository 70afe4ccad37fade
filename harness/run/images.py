"""Images of instances during a run: fetched ahead, and kept here while a task needs them."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

from harness.instances import Instance
from harness.sandbox.base import ImageSupply

_GRACE_SECONDS = 30.0


class Images:
    """Holds images through an `ImageSupply`, in threads of their own; without a supply all images are here already."""

    def __init__(self, supply: ImageSupply | None, places: int) -> None:
        """At most `places` tasks wait for an image at once."""
        self._supply = supply
        self.places = asyncio.Semaphore(places)
        self._threads = ThreadPoolExecutor(places, "sweq-images")
        self._releases: set[Future[None]] = set()

    def prefetch(self, instances: Sequence[Instance]) -> None:
        """See `ImageSupply.prefetch`; each image is named once, where it is needed first."""
        if self._supply is not None:
            self._supply.prefetch(list({one.instance_id: one for one in instances}.values()))

    async def hold(self, instance: Instance) -> "HeldImage":
        """The image of `instance`, which stays until it is released. Raises as `ImageSupply.hold`."""
        if self._supply is None:
            return HeldImage(lambda: None)
        context = self._supply.hold(instance)
        await asyncio.get_running_loop().run_in_executor(self._threads, context.__enter__)
        return HeldImage(lambda: self._release(context))

    def _release(self, context: AbstractContextManager[None]) -> None:
        def leave() -> None:
            context.__exit__(None, None, None)

        future = self._threads.submit(leave)
        self._releases.add(future)
        future.add_done_callback(self._releases.discard)

    def close(self) -> None:
        """Fetch nothing more. Images that are being let go are let go first, within a grace period."""
        wait(set(self._releases), timeout=_GRACE_SECONDS)
        if self._supply is not None:
            self._supply.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class HeldImage:
    """One hold on one image. It begins in one thread and ends in another, as `ImageSupply` allows."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Let the image go; eviction, which may take its time, happens in a thread. May be called twice."""
        release, self._release = self._release, None
        if release is not None:
            release()
