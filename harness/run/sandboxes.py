"""Which sandboxes are open, so that an interrupted run leaves none behind."""

import threading
import weakref

from harness.errors import SandboxError
from harness.instances import Instance
from harness.sandbox.base import Sandbox, SandboxFactory


class TrackedSandboxes:
    """A `SandboxFactory` that remembers what it made. `close_all` may be called from another thread."""

    def __init__(self, factory: SandboxFactory) -> None:
        self.name = factory.name
        self._factory = factory
        self._lock = threading.Lock()
        self._made: weakref.WeakValueDictionary[int, Sandbox] = weakref.WeakValueDictionary()
        self._closed = False

    def create(self, instance: Instance) -> Sandbox:
        """A fresh sandbox of `instance`; after `close_all` a `SandboxError`."""
        sandbox = self._factory.create(instance)
        with self._lock:
            if not self._closed:
                self._made[id(sandbox)] = sandbox
                return sandbox
        sandbox.close()
        raise SandboxError("the run was interrupted")

    def close_all(self) -> None:
        """Close every sandbox that is still in use, and refuse new ones."""
        with self._lock:
            self._closed = True
            made = list(self._made.values())
        for sandbox in made:
            sandbox.close()
