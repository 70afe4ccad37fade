"""Sandboxes from Docker: one fresh container of the instance's image for each.

A container has no network, no capability beyond those a test suite run as root expects, no way to gain more, and
ceilings on memory, processes, cores, single files and its writable layer. Its process 1 is our own and only collects
orphans (not the daemon's `--init`, which would end with its child), so that every command can be followed by killing
all the rest: background processes end with their command. A timeout restarts the container, which the kernel carries
out by killing its whole process namespace, whatever the processes do; files stay. That is why `/tmp` lies on the layer:
a tmpfs would be emptied. Only `/dev/shm` is one, with a size.
"""

import contextlib
import io
import os
import posixpath
import shlex
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.utils import kwargs_from_env, parse_host

from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.base import DEFAULT_OUTPUT_LIMIT, OFFLINE, TESTBED, ExecResult
from harness.sandbox.frames import End, drain, take_read_ahead
from harness.sandbox.layer import LayerCeiling
from harness.sandbox.limits import Limits
from harness.sandbox.namespace import listen_inside
from harness.sandbox.neighbours import HTTPBIN, NAMES, Neighbours, read_needs
from harness.sandbox.output import CappedOutput

_FAILURES = (DockerException, requests.exceptions.RequestException, OSError)
_CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"]
# Waits on a pipe of its own, which never speaks, and collects orphans meanwhile. It must not need another process:
# amid a fork bomb it would get none, and end, and with it the container.
_REAPER = ["-c", "exec 9<> <(:); while :; do read -r -u 9; done"]
# The command's own shell gets the environment that the official images activate; stderr joins stdout in order. The
# outer shell's own messages ("Killed") are not the command's. `kill -1` spares only process 1 and the caller.
_WRAPPER = """
exec 3>&1 2>/dev/null </dev/null
[ -f /opt/miniconda3/bin/activate ] && . /opt/miniconda3/bin/activate testbed >/dev/null
setsid --wait bash -c "$1" >&3 2>&3 3>&-
code=$?
kill -9 -1
exit $code
"""
_RESOLVE = '[ -d "$1" ] && exit 101; mkdir -p -- "$(dirname -- "$1")" && readlink -f -- "$1"'
_A_FOLDER = 101
_BRIEF = 0.2
_NOT_STARTED = 126
_SHARED_MEMORY = 256 << 20
# Bits of Go's os.FileMode, in which the daemon describes a path.
_GO_FOLDER, _GO_TYPE = 1 << 31, 0x8F280000


class DockerSandbox:
    """A `Sandbox` over one running container, which it owns. One command runs at a time; others wait their turn."""

    def __init__(
        self, container: Container, layer_bytes: int | None = None, neighbours: Neighbours | None = None
    ) -> None:
        self._container = container
        self._api: Any = container.client.api if container.client is not None else None
        self._ceiling = LayerCeiling(self._api, str(container.id), layer_bytes) if layer_bytes else None
        self._neighbours = neighbours
        self._turn = threading.Lock()
        self._closed = False

    def exec(
        self,
        command: str,
        *,
        timeout: float,
        cwd: str = TESTBED,
        env: Mapping[str, str] | None = None,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
    ) -> ExecResult:
        """See `Sandbox.exec`. Background processes end with their command."""
        with self._turn:
            try:
                return self._exec(command, timeout, cwd, {**OFFLINE, **(env or {})}, CappedOutput(output_limit))
            except _FAILURES as error:
                raise SandboxError(f"container {self._container.short_id}: {_one_line(error)}") from error

    def _exec(self, command: str, timeout: float, cwd: str, env: dict[str, str], captured: CappedOutput) -> ExecResult:
        start = time.monotonic()
        end, code = self._run(command, start + timeout, cwd, env, captured)
        if code is None:
            # The dead of a fork bomb that process 1 has yet to collect leave no room for another process.
            self._restart()
            end, code = self._run(command, start + timeout, cwd, env, captured)
        if code is None:
            said = " ".join(captured.text().split())
            raise SandboxError(f"container {self._container.short_id}: a command could not be started: {said}")
        if self._ceiling is not None and (end is End.DISK or self._grew_too_large(start)):
            self._free(self._ceiling, captured)
            code = code or 137
        seconds = time.monotonic() - start
        return ExecResult(code, captured.text(), end is End.TIMEOUT, captured.dropped, seconds)

    def _run(
        self, command: str, deadline: float, cwd: str, env: dict[str, str], captured: CappedOutput
    ) -> tuple[End, int | None]:
        """Run once; the exit code is None where the runtime could not start a process."""
        argv = ["bash", "-c", _WRAPPER, "sweq", command]
        handle = self._api.exec_create(self._container.id, argv, environment=env, workdir=cwd)["Id"]
        connection = self._api.exec_start(handle, socket=True)
        stream = getattr(connection, "_sock", connection)
        try:
            end = drain(stream, captured, deadline, self._ceiling, take_read_ahead(connection))
        finally:
            # Before any restart: a daemon that waits for its output to be read does not see the processes' ends.
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            connection.close()
        if end is not End.ITSELF:
            self._restart()
            return end, 124 if end is End.TIMEOUT else 137
        return end, self._exit_code(handle)

    def _restart(self) -> None:
        self._container.restart(timeout=0)
        self.open_neighbours()

    def _grew_too_large(self, start: float) -> bool:
        """Whether a command that could have written much between two measurements did."""
        lasted = time.monotonic() - start > _BRIEF
        return self._ceiling is not None and lasted and self._ceiling.is_exceeded()

    def _free(self, ceiling: LayerCeiling, captured: CappedOutput) -> None:
        captured.feed(ceiling.explain().encode())
        argv = ["bash", "-c", ceiling.freeing_command()]
        self._api.exec_start(self._api.exec_create(self._container.id, argv, workdir="/")["Id"])

    def _exit_code(self, handle: str) -> int | None:
        """The daemon notes the exit code shortly after the output has ended; None where no process ever ran."""
        for _ in range(200):
            state = self._api.exec_inspect(handle)
            if state["ExitCode"] is not None:
                return None if state["ExitCode"] == _NOT_STARTED and not state["Pid"] else int(state["ExitCode"])
            time.sleep(0.02)
        raise SandboxError(f"container {self._container.short_id}: a command ended without an exit code")

    def read_file(self, path: str) -> bytes:
        """See `Sandbox.read_file`; raises `OSError` for what is neither a file nor a folder."""
        path = posixpath.join(TESTBED, path)
        try:
            stream, stat = self._api.get_archive(self._container.id, path)
            if stat["linkTarget"]:
                stream, stat = self._api.get_archive(self._container.id, stat["linkTarget"])
            mode = int(stat["mode"])
            if mode & _GO_FOLDER:
                raise IsADirectoryError(f"a folder in the sandbox, not a file: {path}")
            if mode & _GO_TYPE:
                raise OSError(f"not a regular file in the sandbox: {path}")
            return _only_file(stream)
        except NotFound as error:
            if "no such container" in str(error).lower():
                raise SandboxError(_one_line(error)) from error
            raise FileNotFoundError(f"no such file in the sandbox: {path}") from None
        except (DockerException, requests.exceptions.RequestException) as error:
            raise SandboxError(f"container {self._container.short_id}: {_one_line(error)}") from error

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.write_file`; raises `OSError` where the path cannot be written."""
        path = posixpath.join(TESTBED, path)
        resolved = self.exec(f"set -- {shlex.quote(path)}; {_RESOLVE}", timeout=60, cwd="/")
        if resolved.exit_code == _A_FOLDER:
            raise IsADirectoryError(f"a folder in the sandbox, not a file: {path}")
        if resolved.exit_code != 0:
            raise OSError(f"{path} in the sandbox: {resolved.output.strip()}")
        folder, name = posixpath.split(resolved.output.removesuffix("\n"))
        try:
            self._container.put_archive(folder, _archive(name, data, mode))
        except APIError as error:
            raise OSError(f"{path} in the sandbox: {_one_line(error)}") from error
        except (DockerException, requests.exceptions.RequestException) as error:
            raise SandboxError(f"container {self._container.short_id}: {_one_line(error)}") from error

    def listen(self, port: int) -> socket.socket:
        """See `Sandbox.listen`. Raises `UserError` unless the harness is root on the daemon's own machine."""
        return listen_inside(self._enter("agent.profile external needs"), port)

    def open_neighbours(self) -> None:
        """Put the stand-ins of what the instance's tests reach for into the container's present network."""
        if self._neighbours is not None:
            self._neighbours.open(self, self._enter("the tests of this instance need"))

    def _enter(self, needing: str) -> list[str]:
        """The command line before one that shall run in the container's network."""
        try:
            self._container.reload()
        except _FAILURES as error:
            raise SandboxError(f"container {self._container.short_id}: {_one_line(error)}") from error
        network = Path(f"/proc/{self._container.attrs['State']['Pid']}/ns/net")
        try:
            network.stat()
        except OSError:
            raise UserError(
                f"{needing} root on the machine of the Docker daemon, to reach into a container's "
                "network; run as root there, or use --sandbox namespace"
            ) from None
        return ["nsenter", f"--net={network}", "--"]

    def close(self) -> None:
        """See `Sandbox.close`."""
        if self._closed:
            return
        self._closed = True
        if self._neighbours is not None:
            self._neighbours.close()
        try:
            self._container.remove(force=True, v=True)
        except NotFound:
            return
        except _FAILURES as error:
            raise SandboxError(f"container {self._container.short_id}: {_one_line(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DockerFactory:
    """Makes `DockerSandbox`es; `image_for` says which image an instance runs in (default: its own).

    `folders` of the daemon's machine are shown inside at their own paths, read-only.
    """

    name = "docker"

    def __init__(
        self,
        image_for: Callable[[Instance], str | None] | None = None,
        limits: Limits | None = None,
        *,
        run_id: str = "",
        folders: Sequence[Path] = (),
        host: str | None = None,
        runtime: str | None = None,
    ) -> None:
        self._image_for = image_for or (lambda instance: instance.image)
        self._limits = limits or Limits()
        self._volumes = {str(folder): {"bind": str(folder), "mode": "ro"} for folder in folders}
        self._labels = {"sweq": "1", "sweq.run": run_id, **own_labels()}
        self._client = connect(host)
        daemon = self._client.info()
        self._cpus = min(self._limits.cpus, daemon.get("NCPU", 1))
        self._runtime = _check_runtime(runtime, daemon)
        _remove_orphans(self._client)

    @property
    def client(self) -> docker.DockerClient:
        """The daemon that the containers run at."""
        return self._client

    def create(self, instance: Instance) -> DockerSandbox:
        """See `SandboxFactory.create`."""
        image = self._image_for(instance)
        if image is None:
            raise UserError(f"{instance.instance_id}: names no image, so it cannot run in Docker")
        try:
            return self._open(instance, image)
        except ImageNotFound:
            raise UserError(missing_image(instance.instance_id, image)) from None
        except _FAILURES as error:
            raise SandboxError(f"{instance.instance_id}: Docker: {_one_line(error)}") from error

    def identity(self, instance: Instance) -> dict[str, str]:
        """What the run record keeps of the image: its name, content digest, and `source` (official or sdist)."""
        image = self._image_for(instance)
        if image is None:
            raise UserError(f"{instance.instance_id}: names no image, so it cannot run in Docker")
        try:
            found = self._client.images.get(image)
        except ImageNotFound:
            raise UserError(missing_image(instance.instance_id, image)) from None
        return {"image": image, "digest": str(found.id), "source": found.labels.get("sweq.source", "official")}

    def _open(self, instance: Instance, image: str) -> DockerSandbox:
        needs = read_needs().get(instance.instance_id, frozenset())
        neighbours = Neighbours(needs) if needs else None
        names = dict.fromkeys(NAMES, "127.0.0.1") if HTTPBIN in needs else {}
        sandbox = DockerSandbox(self._start(instance, image, names), self._limits.layer_bytes, neighbours)
        if neighbours is not None:
            try:
                neighbours.trust(sandbox)
                sandbox.open_neighbours()
            except BaseException:
                sandbox.close()
                raise
        return sandbox

    def _start(self, instance: Instance, image: str, names: Mapping[str, str]) -> Container:
        container = self._client.containers.create(
            image,
            _REAPER,
            entrypoint=["bash"],
            user="0:0",
            hostname="sandbox",
            network_mode="none",
            extra_hosts=dict(names),
            volumes=self._volumes,
            cap_drop=["ALL"],
            cap_add=_CAPABILITIES,
            security_opt=["no-new-privileges"],
            mem_limit=self._limits.memory_bytes,
            memswap_limit=self._limits.memory_bytes,
            pids_limit=self._limits.processes,
            nano_cpus=int(self._cpus * 1e9),
            shm_size=_SHARED_MEMORY,
            runtime=self._runtime,
            ulimits=[
                docker.types.Ulimit(name="core", soft=0, hard=0),
                docker.types.Ulimit(name="fsize", soft=self._limits.file_bytes, hard=self._limits.file_bytes),
                docker.types.Ulimit(name="nofile", soft=self._limits.open_files, hard=self._limits.open_files),
            ],
            labels={**self._labels, "sweq.instance": instance.instance_id},
        )
        try:
            container.start()
        except BaseException:
            # One that was made and never ran would keep its image from being given up.
            with contextlib.suppress(*_FAILURES):
                container.remove(force=True, v=True)
            raise
        return container


def connect(host: str | None = None) -> docker.DockerClient:
    """A client of the daemon at `host`, or that `DOCKER_HOST` names; raises `UserError` when none answers."""
    try:
        client = docker.DockerClient(base_url=host, timeout=600) if host else docker.from_env(timeout=600)
        client.ping()
    except _FAILURES:
        place = str(parse_host(kwargs_from_env().get("base_url"))).removeprefix("http+") if host is None else host
        raise UserError(
            f"Docker was asked for but no daemon answers at {place}: start it, or use --sandbox namespace"
        ) from None
    return client


def _check_runtime(runtime: str | None, daemon: Mapping[str, Any]) -> str | None:
    known = sorted(daemon.get("Runtimes") or {})
    if runtime is not None and runtime not in known:
        raise UserError(f"docker.runtime: the daemon has no runtime {runtime!r}; it has {', '.join(known) or 'none'}")
    return runtime


def own_labels() -> dict[str, str]:
    """Labels of a container that this process owns: once it is gone, the next factory removes the container."""
    return {"sweq.owner": _name_process(os.getpid())}


def _name_process(pid: int) -> str:
    """A name that no other process of this machine has had: host, id and start time (ticks since boot, proc(5)).

    Empty where there is no such process, or no /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{socket.gethostname()}:{pid}:{fields[19]}"


def _remove_orphans(client: docker.DockerClient) -> None:
    """Remove the containers of harness processes of this machine that were killed before they could."""
    for container in client.containers.list(all=True, ignore_removed=True, filters={"label": "sweq.owner"}):
        owner = container.labels["sweq.owner"]
        host, _, rest = owner.partition(":")
        if host == socket.gethostname() and _name_process(int(rest.partition(":")[0])) != owner:
            with contextlib.suppress(DockerException):
                container.remove(force=True, v=True)


def missing_image(instance_id: str, image: str) -> str:
    """The line for an instance whose image is not here."""
    return (
        f"{instance_id}: no image {image} here: `sweq images pull -i {instance_id}`, "
        f"or build it with `sweq images build --source sdist -i {instance_id}`"
    )


def _only_file(stream: Iterator[bytes]) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        file = archive.extractfile(archive.getmembers()[0])
        return file.read() if file is not None else b""


def _archive(name: str, data: bytes, mode: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _one_line(error: BaseException) -> str:
    text = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
    return " ".join(str(text).split())
