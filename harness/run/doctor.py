"""Whether this machine can carry out a run."""

import datetime
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

_LEAST_DISK = 10 << 30
_LEAST_MEMORY = 4 << 30
_LARGEST_SKEW = 60.0
_EARLIEST = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC).timestamp()
"""No clock that is set shows an earlier time than that of the first release."""


@dataclass(frozen=True)
class Check:
    """One finding. `optional` things are needed by some runs only."""

    name: str
    passed: bool
    finding: str
    remedy: str = ""
    optional: bool = False

    def describe(self) -> str:
        """One line."""
        mark = "ok  " if self.passed else "note" if self.optional else "FAIL"
        return f"{mark} {self.name}: {self.finding}" + (f"; {self.remedy}" if self.remedy and not self.passed else "")


def check_all(folder: Path = Path()) -> Iterator[Check]:
    """Every check in turn; runs are assumed to go under `folder`."""
    yield _check_git()
    docker, namespaces = _check_docker(), _check_namespaces()
    yield docker
    yield namespaces
    sandboxes = [check.name for check in (docker, namespaces) if check.passed]
    yield Check("sandboxes", bool(sandboxes), " and ".join(sandboxes) or "neither docker nor namespaces", "mend one")
    yield _check_disk(folder)
    yield _check_memory()
    yield _check_clock(folder)
    yield _check_engine()


def _check_git() -> Check:
    path = shutil.which("git")
    return Check("git", path is not None, path or "not on PATH", "install it: apt-get install git")


def _check_docker() -> Check:
    import docker
    from docker.errors import DockerException

    remedy = "start it (sudo systemctl start docker), or use sandbox: namespace"
    try:
        client = docker.from_env(timeout=5)
        version = client.version()["Version"]
        client.close()
    except DockerException as error:
        return Check("docker", False, f"no daemon answers ({_first_line(error)})", remedy, optional=True)
    return Check("docker", True, f"daemon {version}", optional=True)


def _check_namespaces() -> Check:
    from harness.sandbox.namespace import probe

    reason = probe()
    remedy = "use sandbox: docker"
    return Check("namespaces", reason is None, reason or "can be made", remedy, optional=True)


def _check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    remedy = "free some, or set results to a larger disk"
    return Check("disk", free >= _LEAST_DISK, f"{free >> 30} GiB free here", remedy)


def _check_memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return Check("memory", True, "cannot be read on this system", optional=True)
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    finding = f"{available / (1 << 30):.1f} GiB available"
    return Check("memory", available >= _LEAST_MEMORY, finding, "close other programs, or lower agent_workers")


def _check_clock(folder: Path) -> Check:
    """The system's time beside that of the file system where runs go, and of the Docker daemon.

    Records, image ages and certificates rely on it; run times do not, they are taken from the monotonic clock.
    """
    others = {"the file system": _ask_file_time(folder), "the Docker daemon": _ask_docker_time()}
    skews = {name: abs(then - now) for name, pair in others.items() if pair for then, now in [pair]}
    worst = max(skews, key=lambda name: skews[name])
    finding = f"within {skews[worst]:.1f} s of {' and '.join(skews)}"
    if time.time() < _EARLIEST:
        return Check("clock", False, f"says {datetime.date.today()}", "set it: timedatectl set-ntp true")
    if skews[worst] > _LARGEST_SKEW:
        return Check("clock", False, f"{skews[worst]:.0f} s off {worst}", "set both: timedatectl set-ntp true")
    return Check("clock", True, finding)


def _ask_file_time(folder: Path) -> tuple[float, float]:
    """Seconds since the epoch that a new file gets, and the system's time then."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".sweq-clock-") as file:
        file.write(b"x")
        file.flush()
        return os.fstat(file.fileno()).st_mtime, time.time()


def _ask_docker_time() -> tuple[float, float] | None:
    """Seconds since the epoch at the daemon, and the system's time then; None without a daemon."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=5)
        said, now = str(client.info()["SystemTime"]), time.time()
        client.close()
    except (DockerException, KeyError):
        return None
    return datetime.datetime.fromisoformat(said).timestamp(), now


def _check_engine() -> Check:
    from harness.endpoint import find_engine

    try:
        program = find_engine("sweq-engine")
    except UserError as error:
        return Check("engine", False, str(error), "or point at a server with --base-url", optional=True)
    missing = importlib.util.find_spec("torch") is None
    finding = f"{program}, but torch is not installed" if missing else program
    return Check("engine", not missing, finding, "pip install 'sweq[engine]'", optional=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
