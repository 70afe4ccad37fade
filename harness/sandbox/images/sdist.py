"""Images of SWE-bench instances where no image registry can be reached: built from Debian and from release archives.

Two kinds, both cached by the hash of what they were made from, which their label `sweq.recipe` carries:

- the base, `sweq/base:<suite>-<hash>`: debootstrap, Python, git, a compiler, and a stand-in for conda's `activate`;
- an instance's, under the official name that its row gives, labelled `sweq.source=sdist` so that nobody mistakes it
  for the official image: `/testbed` is the release's source with `test_patch` and `patch` taken out where they are
  present, committed, and standing in for `base_commit` by a git replace reference.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import ImageNotFound
from docker.models.images import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.docker import DockerSandbox, connect
from harness.sandbox.supervise import last_line

SDISTS = Path(__file__).parent / "sdists.yaml"
_SUITES = {"3.11": "bookworm"}
_PACKAGES = "python3,python3-dev,python3-pip,python3-venv,git,build-essential,ca-certificates,locales,patch"
_TOOLS = ("pip==24.0", "setuptools==68.0.0", "wheel==0.40.0")
_CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_STEP_TIMEOUT = 1_800.0

# The official scripts source this under `set -u`, then call `conda activate testbed`.
_ACTIVATE = """\
conda() { :; }
case ":$PATH:" in
  *:/opt/miniconda3/envs/testbed/bin:*) ;;
  *) export PATH="/opt/miniconda3/envs/testbed/bin:$PATH" ;;
esac
export VIRTUAL_ENV=/opt/miniconda3/envs/testbed CONDA_DEFAULT_ENV=testbed
"""

_BUILD = """\
set -Eeuo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
python3 -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(v != "{python}" and "base image has Python " + v)'
python3 -m venv /opt/miniconda3/envs/testbed
. /opt/miniconda3/bin/activate
python -m pip install -q {tools}
python -m pip install -q {pins}
python -m pip download -q --no-deps --no-binary :all: -d /build/sdist {sdist}
tar -x -f /build/sdist/*.tar.gz --strip-components=1 --no-same-owner -C /testbed
cd /testbed
git config --global user.name sweq
git config --global user.email sweq@localhost
git config --global init.defaultBranch main
git init -q
printf '%s\\n' '*.egg-info/' '__pycache__/' '*.py[cod]' '.pytest_cache/' >> .git/info/exclude
for name in test_patch patch; do
  [ -s /build/$name.diff ] || continue
  if git apply --check -R /build/$name.diff 2>/dev/null; then
    git apply -R /build/$name.diff
  elif ! git apply --check /build/$name.diff; then
    echo "$name neither applies to the sdist nor can be taken out of it" >&2
    exit 1
  fi
done
{steps}
git add -A
git commit -q -m 'SWE-bench base from {sdist}'
git update-ref refs/replace/{commit} HEAD
python -m pip install -q --no-deps -e .
test -z "$(git status --short)"
rm -rf /build /root/.cache
"""


class Sdist(BaseModel):
    """One entry of `sdists.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sdist: str
    python: str
    pins: tuple[str, ...]
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageInfo:
    """One local image: `source` is `official`, `sdist` or `base`; `digest` is the image's content id."""

    name: str
    digest: str
    source: str
    instance_id: str
    size_bytes: int


def load_sdists(path: Path = SDISTS) -> dict[str, Sdist]:
    """The table of instances that can be built from release archives, by instance id."""
    table = yaml.safe_load(path.read_text())
    if not isinstance(table, dict):
        raise UserError(f"{path}: must be a mapping of instance ids")
    entries = {}
    for instance_id, fields in table.items():
        try:
            entries[instance_id] = Sdist.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in (instance_id, *first["loc"]))
            raise UserError(f"{path}: {key}: {first['msg']}") from None
        if entries[instance_id].python not in _SUITES:
            raise UserError(f"{path}: {instance_id}.python: must be one of {', '.join(_SUITES)}")
    return entries


def build(
    ids: Sequence[str], instances: Iterable[Instance], source: str, progress: Callable[[str], None]
) -> list[ImageInfo]:
    """Build what is missing of the images of `ids`; an image that is here already is left alone.

    `source` must be `sdist`. `progress` gets one line for each step. Raises `UserError` for an instance that the table
    does not have, `SandboxError` when a build fails.
    """
    if source != "sdist":
        raise UserError(f"--source {source}: must be sdist (official images come by `docker pull`)")
    if not ids:
        raise UserError(f"name the instances to build with -i: {', '.join(sorted(load_sdists()))}")
    table, rows = load_sdists(), {instance.instance_id: instance for instance in instances}
    for instance_id in ids:
        if instance_id not in table:
            raise UserError(f"{instance_id}: not in {SDISTS.name}, which has {', '.join(sorted(table))}")
        if instance_id not in rows:
            raise UserError(f"{instance_id}: not among the data set's instances")
    client = connect()
    return [_build_one(client, rows[name], table[name], progress) for name in ids]


def build_sdist_image(instance: Instance, progress: Callable[[str], None] = lambda line: None) -> str:
    """Build the image of one instance from its release archive; returns its tag."""
    return build([instance.instance_id], [instance], "sdist", progress)[0].name


def build_base(progress: Callable[[str], None] = lambda line: None, python: str = "3.11") -> str:
    """Build the base image unless it is here; returns its tag."""
    return _build_base(connect(), python, progress)


def list_images() -> list[str]:
    """One line for each local image of an instance and each base, then one for each instance that could be built."""
    images = sorted((info for image in connect().images.list() for info in _describe(image)), key=lambda i: i.name)
    built = {info.instance_id for info in images}
    lines = [f"{info.name}  {info.source}  {info.size_bytes / 1e6:.0f} MB  {info.digest[:19]}" for info in images]
    missing = (name for name in sorted(load_sdists()) if name not in built)
    return lines + [f"{name}  not built: sweq images build --source sdist -i {name}" for name in missing]


def build_script(instance: Instance, entry: Sdist) -> str:
    """The shell script that turns a container of the base image into the instance's."""
    return _BUILD.format(
        python=entry.python,
        tools=shlex.join(_TOOLS),
        pins=shlex.join(entry.pins),
        sdist=shlex.quote(entry.sdist),
        steps="\n".join(entry.steps),
        commit=instance.base_commit,
    )


def _build_one(client: docker.DockerClient, row: Instance, entry: Sdist, progress: Callable[[str], None]) -> ImageInfo:
    if row.image is None:
        raise UserError(f"{row.instance_id}: its row names no image")
    with _only_builder(row.instance_id):
        base = _build_base(client, entry.python, progress)
        script = build_script(row, entry)
        recipe = _hash(base, script, row.patch, row.test_patch)
        found = _find(client, row.image)
        if found is not None and found.labels.get("sweq.source") != "sdist":
            progress(f"{row.instance_id}: {row.image} is here and not ours: left alone")
        elif found is None or found.labels.get("sweq.recipe") != recipe:
            progress(f"{row.instance_id}: building {row.image} from {entry.sdist}")
            labels = {"sweq.source": "sdist", "sweq.instance": row.instance_id, "sweq.recipe": recipe}
            _commit(client, base, script, {"test_patch": row.test_patch, "patch": row.patch}, row.image, labels)
        else:
            progress(f"{row.instance_id}: {row.image} is here already")
    return next(info for info in _describe(client.images.get(row.image)) if info.name == row.image)


def _commit(
    client: docker.DockerClient,
    base: str,
    script: str,
    patches: Mapping[str, str],
    tag: str,
    labels: Mapping[str, str],
) -> None:
    """Run `script` in a container of `base` that has the host's network, and keep what it made as `tag`."""
    # No entrypoint: the image would inherit it, and the official runner starts its containers with a command alone.
    command = ["bash", "-c", "while :; do sleep infinity & wait $!; done"]
    container = client.containers.run(base, command, detach=True, network_mode="host")
    with DockerSandbox(container) as box:
        for name, text in patches.items():
            box.write_file(f"/build/{name}.diff", text.encode())
        environment = _network_environment()
        certificates = _certificates()
        if certificates is not None:
            box.write_file("/build/certificates.pem", certificates.read_bytes())
            environment |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), "/build/certificates.pem")
        box.write_file("/build/build.sh", script.encode())
        result = box.exec("bash /build/build.sh", timeout=_STEP_TIMEOUT, cwd="/", env=environment)
        if result.exit_code != 0:
            raise SandboxError(f"{tag}: the build failed: {last_line(result.output)}")
        repository, _, version = tag.rpartition(":")
        changes = [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
        container.commit(repository, version, changes=["ENTRYPOINT []", 'CMD ["/bin/bash"]', *changes])


def _build_base(client: docker.DockerClient, python: str, progress: Callable[[str], None]) -> str:
    suite = _SUITES[python]
    recipe = _hash(suite, _PACKAGES, _ACTIVATE)
    tag = f"sweq/base:{suite}-{recipe}"
    with _only_builder("base"):
        if _find(client, tag) is None:
            progress(f"building {tag} with debootstrap: one to three minutes")
            with tempfile.TemporaryDirectory(prefix="sweq-base-") as folder:
                _import(client, _bootstrap(suite, Path(folder)), tag, recipe)
    return tag


def _bootstrap(suite: str, folder: Path) -> Path:
    """A Debian root file system of `suite`, as one tar archive in `folder`."""
    missing = [tool for tool in ("debootstrap", "tar") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        problem = f"{missing[0]} is missing (apt-get install {missing[0]})" if missing else "debootstrap needs root"
        raise UserError(f"the base image cannot be built: {problem}")
    root, archive = folder / "root", folder / "root.tar"
    _call("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(root))
    for unwanted in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(root / unwanted, ignore_errors=True)
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    (root / "testbed").mkdir()
    activate = root / "opt/miniconda3/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(_ACTIVATE)
    _call("tar", "-c", "-f", str(archive), "--numeric-owner", "--exclude=./dev/*", "-C", str(root), ".")
    return archive


def _import(client: docker.DockerClient, archive: Path, tag: str, recipe: str) -> None:
    repository, _, version = tag.rpartition(":")
    labels = {"sweq.source": "base", "sweq.recipe": recipe}
    changes = ["ENV LANG=C.UTF-8", 'CMD ["/bin/bash"]', *(f"LABEL {key}={value}" for key, value in labels.items())]
    api: Any = client.api
    answer = json.loads(api.import_image(str(archive), repository=repository, tag=version, changes=changes))
    if "error" in answer:
        raise SandboxError(f"{tag}: {answer['error']}")


def _call(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise SandboxError(f"{command[0]} failed: {last_line(done.stdout + done.stderr)}")


@contextmanager
def _only_builder(name: str) -> Iterator[None]:
    """Two processes that want the same image build it once."""
    with open(Path(tempfile.gettempdir()) / f"sweq-image-{_hash(name)}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find(client: docker.DockerClient, tag: str) -> Image | None:
    try:
        return client.images.get(tag)
    except ImageNotFound:
        return None


def _describe(image: Image) -> Iterator[ImageInfo]:
    """One entry for each of the image's tags that is a base's or an instance's."""
    source = image.labels.get("sweq.source", "")
    for tag in image.tags:
        if source or "sweb.eval." in tag:
            instance_id = image.labels.get("sweq.instance", "")
            size = int(image.attrs.get("Size", 0))
            yield ImageInfo(tag, str(image.id), source or "official", instance_id, size)


def _network_environment() -> dict[str, str]:
    """The package index and the proxies that this process uses; they do not stay in the image."""
    names = (*_PASSED_ON, *_PROXIES)
    return {"PIP_RETRIES": "5"} | {name: os.environ[name] for name in names if os.environ.get(name)}


def _certificates() -> Path | None:
    """The certificate bundle that this process was told to trust."""
    paths = (Path(os.environ[name]) for name in _CERTIFICATES if os.environ.get(name))
    return next((path for path in paths if path.is_file()), None)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
