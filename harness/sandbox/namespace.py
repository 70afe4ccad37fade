"""Sandboxes from Linux namespaces: no daemon, no image, root or not.

A sandbox is one holder process (`jail.py hold`) that owns mount, process, network, IPC and host-name namespaces (and a
user namespace where the harness is not root). Of the host only the system folders and the Python that runs the harness
exist inside, read-only; homes, sockets, data sets, results and the harness itself do not. `/testbed`, `/tmp` and
`HOME` lie on a tmpfs with a size limit. The network is a loopback device that is up and leads nowhere.

Each command gets a process namespace of its own, so ending it, by itself or by timeout, leaves no process behind.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.base import DEFAULT_OUTPUT_LIMIT, OFFLINE, TESTBED, ExecResult
from harness.sandbox.limits import Limits
from harness.sandbox.output import CappedOutput
from harness.sandbox.planting import HOME, pack_tree
from harness.sandbox.supervise import GRACE, Finished, last_line, supervise

_JAIL = Path(__file__).resolve().parent / "jail.py"
# Where the holder puts a copy of `_JAIL` inside the sandbox.
_JAIL_INSIDE = "/.sandbox.py"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A user id that no host account has: what a sandbox's root is outside, when the harness is root.
_STRANGER = 2_000_000_000
_NO_FILE, _A_FOLDER, _NOT_REGULAR = 100, 101, 102
_READ = f"""
[ -d "$1" ] && exit {_A_FOLDER}
[ -e "$1" ] || exit {_NO_FILE}
[ -f "$1" ] || exit {_NOT_REGULAR}
exec cat -- "$1"
"""
_WRITE = f"""
[ -d "$1" ] && exit {_A_FOLDER}
mkdir -p -- "$(dirname -- "$1")" && cat > "$1" && chmod "$2" -- "$1"
"""


class NamespaceSandbox:
    """A `Sandbox` over one holder process."""

    def __init__(self, root: Path, limits: Limits, folders: Sequence[Path] = ()) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._running: set[socket.socket] = set()
        self._closed = False
        self._holder, self._line = _start_holder(root, limits, folders)
        try:
            self._pid = _await_ready(self._holder, self._line)
        except SandboxError:
            self.close()
            raise

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
        done = self._run(["bash", "-c", command], timeout=timeout, cwd=cwd, env=env or {}, output_limit=output_limit)
        code = 124 if done.exit_code is None else done.exit_code
        return ExecResult(code, done.output.text(), done.exit_code is None, done.output.dropped, done.seconds)

    def read_file(self, path: str) -> bytes:
        """See `Sandbox.read_file`; raises `OSError` for what is neither a file nor a folder."""
        with tempfile.TemporaryFile() as spool:
            done = self._run(["sh", "-c", _READ, "sh", path], timeout=60, spool=spool)
            _raise_for(done, path)
            spool.seek(0)
            return spool.read()

    def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """See `Sandbox.write_file`; raises `OSError` where the path cannot be written."""
        done = self._run(["sh", "-c", _WRITE, "sh", path, f"{mode:o}"], timeout=60, data=data)
        _raise_for(done, path)

    def listen(self, port: int) -> socket.socket:
        """See `Sandbox.listen`."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return listen_inside(["nsenter", "--target", str(self._pid), *user, "--net", "--"], port)

    def unpack(self, archive: bytes) -> None:
        """Unpack a tar archive at the root."""
        done = self._run(["tar", "-x", "-f", "-", "-C", "/"], timeout=600, cwd="/", data=archive)
        if done.exit_code != 0:
            raise SandboxError(f"the repository did not fit into the sandbox: {last_line(done.output.text())}")

    def close(self) -> None:
        """See `Sandbox.close`: the holder ends, and the kernel kills and frees all that was inside."""
        with self._lock:
            self._closed = True
            for line in self._running:
                line.shutdown(socket.SHUT_RDWR)
        self._line.close()
        try:
            self._holder.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        if self._holder.stderr is not None:
            self._holder.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        argv: list[str],
        *,
        timeout: float,
        cwd: str = TESTBED,
        env: Mapping[str, str] | None = None,
        data: bytes | None = None,
        spool: IO[bytes] | None = None,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
    ) -> Finished:
        """Run one process inside to its end or to the deadline; stdout goes to `spool` where one is given."""
        spec = {
            "argv": argv,
            "cwd": cwd,
            "env": _environment(env or {}),
            "owner": _owner(),
            "rlimits": _rlimits(self._limits),
        }
        ours, theirs = socket.socketpair()
        with self._lock:
            if self._closed or self._holder.poll() is not None:
                raise SandboxError("the sandbox is closed" if self._closed else "the sandbox's holder process died")
            self._running.add(ours)
        with ours, theirs, tempfile.TemporaryFile() as stdin:
            try:
                stdin.write(data or b"")
                stdin.seek(0)
                command = [*_enter(self._pid), *_jail(_JAIL_INSIDE, "run", theirs)]
                _send(ours, spec)
                return supervise(
                    command, ours, theirs, stdin, spool, timeout, CappedOutput(output_limit), _environment({})
                )
            finally:
                with self._lock:
                    self._running.discard(ours)


class NamespaceFactory:
    """Makes `NamespaceSandbox`es of instances that bring their tree along; `folders` are shown inside, read-only."""

    name = "namespace"

    def __init__(self, limits: Limits | None = None, folders: Sequence[Path] = ()) -> None:
        self._limits = limits or Limits()
        self._folders = tuple(folders)

    def create(self, instance: Instance) -> NamespaceSandbox:
        """See `SandboxFactory.create`; the tree's commit must be the instance's `base_commit`."""
        if instance.tree is None:
            raise UserError(f"{instance.instance_id}: brings no tree along, so it needs Docker and its image")
        with tempfile.TemporaryDirectory(prefix="sweq-", ignore_cleanup_errors=True) as folder:
            archive = pack_tree(instance, Path(folder) / "testbed")
            root = Path(folder) / "root"
            root.mkdir()
            sandbox = _open(root, self._limits, self._folders)
        try:
            sandbox.unpack(archive)
        except BaseException:
            sandbox.close()
            raise
        return sandbox


def listen_inside(enter: Sequence[str], port: int) -> socket.socket:
    """A listening socket at `port` of the loopback device of another network; `enter` is the command to get there.

    Raises `SandboxError` where the network cannot be entered or the port is taken.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _send(ours, {"port": port})
            done = subprocess.run(
                [*enter, *_jail(_JAIL, "listen", theirs)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=(theirs.fileno(),),
                env=_environment({}),
                timeout=60,
                check=False,
            )
        if done.returncode != 0:
            raise SandboxError(f"no port to the sandbox: {last_line(done.stderr.decode(errors='replace'))}")
        _, descriptors, _, _ = socket.recv_fds(ours, 64, 1)
    return socket.socket(fileno=descriptors[0])


def probe() -> str | None:
    """Why this machine cannot make namespace sandboxes, in one line; None where it can."""
    if sys.platform != "linux":
        return f"namespaces need Linux, not {sys.platform}"
    missing = [tool for tool in ("unshare", "nsenter", "bash", "git", "tar") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: install util-linux, bash, git and tar"
    with tempfile.TemporaryDirectory(prefix="sweq-", ignore_cleanup_errors=True) as folder:
        try:
            with NamespaceSandbox(Path(folder), Limits(disk_bytes=1 << 20)) as sandbox:
                result = sandbox.exec("true", timeout=30, cwd="/")
        except SandboxError as error:
            return f"{error}{_hint()}"
    return None if result.exit_code == 0 else f"{last_line(result.output)}{_hint()}"


def _open(root: Path, limits: Limits, folders: Sequence[Path]) -> NamespaceSandbox:
    try:
        return NamespaceSandbox(root, limits, folders)
    except SandboxError:
        reason = probe()
        if reason is None:
            raise
        raise UserError(f"namespace sandboxes cannot be made here: {reason}; use --sandbox docker") from None


def _hint() -> str:
    """The kernel setting that most likely forbids user namespaces, or nothing."""
    settings = {
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "1"),
        "/proc/sys/user/max_user_namespaces": ("0", "10000"),
    }
    for path, (bad, good) in settings.items():
        if Path(path).exists() and Path(path).read_text().strip() == bad:
            name = path.removeprefix("/proc/sys/").replace("/", ".")
            return f" (sysctl {name} is {bad}: set it to {good})"
    return ""


def _owner() -> int:
    """The id that owns a sandbox's files, as seen by the holder."""
    return _STRANGER if os.geteuid() == 0 else 0


def _visible(folders: Sequence[Path]) -> list[str]:
    """`folders`, and those of the interpreter that runs the harness: `python -m pytest` is the same inside.

    Outer ones come first.
    """
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)
    return sorted(
        (
            {os.path.realpath(prefix) for prefix in prefixes}
            | {os.path.abspath(sys.prefix)}
            | {str(folder) for folder in folders}
        )
        - {"/"}
    )


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the harness's own environment: it may hold keys."""
    base = {
        "PATH": f"{Path(sys.executable).parent}:{_PATH}",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "USER": "root",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**base, **OFFLINE, **extra}


def _rlimits(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }


def _jail(script: Path | str, mode: str, line: socket.socket) -> list[str]:
    return [sys.executable, "-I", "-S", str(script), mode, str(line.fileno())]


def _send(line: socket.socket, spec: Mapping[str, Any]) -> None:
    line.sendall(json.dumps(spec).encode() + b"\n")


def _enter(pid: int) -> list[str]:
    """The command line before one that shall run inside the holder's namespaces, in a new process namespace."""
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    spaces = ["--mount", "--net", "--ipc", "--uts", "--pid"]
    return ["nsenter", "--target", str(pid), *user, *spaces, "--", "unshare", "--mount", "--pid", "--fork", "--"]


def _start_holder(root: Path, limits: Limits, folders: Sequence[Path]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `jail.py hold` in new namespaces; returns it and our end of its socket."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    spaces = ["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
    spec = {
        "root": str(root),
        "system": _SYSTEM,
        "visible": _visible(folders),
        "masked": [str(Path(__file__).resolve().parents[1])],
        "owner": _owner(),
        "disk_bytes": limits.disk_bytes,
        "script": _JAIL.read_text(),
    }
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with theirs:
        command = ["unshare", *user, *spaces, "--", *_jail(_JAIL, "hold", theirs)]
        holder = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=_environment({}),
            start_new_session=True,
        )
    _send(ours, spec)
    return holder, ours


def _await_ready(holder: subprocess.Popen[bytes], line: socket.socket) -> int:
    """Wait until the holder says it is ready; returns its process id as the harness sees it."""
    line.settimeout(60)
    try:
        message, ancillary, _, _ = line.recvmsg(64, socket.CMSG_SPACE(struct.calcsize("3i")))
    except TimeoutError:
        raise SandboxError("the sandbox's holder process did not become ready in 60 s") from None
    if message != b"ready\n":
        output = holder.stderr.read() if holder.stderr is not None else b""
        raise SandboxError(last_line(output.decode(errors="replace")))
    pid: int = struct.unpack("3i", ancillary[0][2])[0]
    return pid


def _raise_for(done: Finished, path: str) -> None:
    """Turn a failed file helper into the exception of the protocol."""
    if done.exit_code == 0:
        return
    if done.exit_code == _NO_FILE:
        raise FileNotFoundError(f"no such file in the sandbox: {path}")
    if done.exit_code == _A_FOLDER:
        raise IsADirectoryError(f"a folder in the sandbox, not a file: {path}")
    if done.exit_code == _NOT_REGULAR:
        raise OSError(f"not a regular file in the sandbox: {path}")
    raise OSError(f"{path} in the sandbox: {last_line(done.output.text())}")
