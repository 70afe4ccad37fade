"""Whether this machine can carry out a run."""

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

_LEAST_DISK = 10 << 30
_LEAST_MEMORY = 4 << 30


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
