"""The sandbox protocol: what the agent and the grader may ask of the place where untrusted code runs."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from harness.instances import Instance

TESTBED = "/testbed"
DEFAULT_OUTPUT_LIMIT = 1 << 20
OFFLINE = {"PIP_RETRIES": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""What every command finds in its environment: tools need not wait for a network that is not there."""


@dataclass(frozen=True)
class ExecResult:
    """What one command left behind.

    `output` is stdout and stderr combined in order, decoded with replacement; past `output_limit` bytes its middle
    is dropped and `dropped_bytes` says how much. `exit_code` is the command's own, or 124 when `timed_out`.
    """

    exit_code: int
    output: str
    timed_out: bool
    dropped_bytes: int
    seconds: float


class Sandbox(Protocol):
    """One isolated copy of an instance's repository at `/testbed`, without network.

    Every method raises `SandboxError` when the sandbox itself fails; a command that fails is an `ExecResult`.
    """

    def exec(
        self,
        command: str,
        *,
        timeout: float,
        cwd: str = TESTBED,
        env: Mapping[str, str] | None = None,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
    ) -> ExecResult:
        """Run `command` under `bash -lc`-like conditions (the instance's environment active) in its own process group.

        After `timeout` seconds the whole process group inside the sandbox is killed and the partial output returned.
        A command that ends by itself takes its background processes with it, too; start what must stay in `command`.
        """
        ...

    def read_file(self, path: str) -> bytes:
        """Bytes of a regular file inside the sandbox; raises `FileNotFoundError` or `IsADirectoryError`."""
        ...

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write `data`, creating parent folders; raises `IsADirectoryError`, or `OSError` where it cannot be written.

        Relative paths of both methods start at `/testbed`.
        """
        ...

    def listen(self, port: int) -> socket.socket:
        """A socket that listens at `port` of the sandbox's own loopback device, for the harness to accept from.

        It is the only way out of the sandbox, and leads wherever the harness takes what comes over it.
        """
        ...

    def close(self) -> None:
        """Kill every process inside and remove all traces; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SandboxFactory(Protocol):
    """Makes fresh sandboxes; `name` is `docker` or `namespace` and goes into the run record."""

    name: str

    def create(self, instance: Instance) -> Sandbox:
        """A fresh sandbox of `instance`; raises `SandboxError`, or `UserError` where the instance cannot run here."""
        ...


class ImageSupply(Protocol):
    """Brings the images of instances to this machine, and keeps them here while they are held. Thread-safe."""

    def order(self, instances: Sequence[Instance]) -> list[Instance]:
        """`instances` in an order in which those that share layers follow one another."""
        ...

    def prefetch(self, instances: Sequence[Instance]) -> None:
        """Bring the images of `instances`, in this order, in the background, as far ahead as the budget allows."""
        ...

    def hold(self, instance: Instance) -> AbstractContextManager[None]:
        """Block until the image of `instance` is here; it is not evicted before the context ends.

        Raises `SandboxError` when it cannot be brought, `UserError` where it can never be.
        """
        ...

    def status(self) -> str:
        """A few words for the display: what the images take of the disk; empty where there is nothing to say."""
        ...

    def close(self) -> None:
        """Stop what runs in the background."""
        ...
