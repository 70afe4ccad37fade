"""Images of SWE-bench instances where no image registry can be reached: built from Debian and from release archives.

Three layers, so that instances share what is large:

- the base (see `debian`), one for each Python;
- a release's environment, `sweq/environment:<release>-<hash>`: the pins, and the release's source in `/testbed`;
- the instance's own, under the official name that its row gives, labelled `sweq.source=sdist` so that nobody mistakes
  it for the official image: `test_patch` and `patch` are taken out of `/testbed` where the release has them, and what
  is left is committed and stands in for `base_commit` by a git replace reference.
"""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import docker
from docker.models.images import Image

from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox.docker import connect
from harness.sandbox.images import debian
from harness.sandbox.images.layers import Layer, commit_layer, find_image, only_builder
from harness.sandbox.images.releases import SDISTS, Release, load_releases

_TOOLS = ("pip==24.0", "setuptools==68.0.0", "wheel==0.40.0")

_START = """\
set -Eeuo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
. /opt/miniconda3/bin/activate
"""

_ENVIRONMENT = """\
python -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(v != "{python}" and "base image has Python " + v)'
python -m pip install -q {tools}
{pins}
python -m pip download -q --no-deps --no-binary {project} -d /build/sdist {sdist}
tar -x -f /build/sdist/*.tar.gz --strip-components=1 --no-same-owner -C /testbed
cd /testbed
git config --global user.name sweq
git config --global user.email sweq@localhost
git config --global init.defaultBranch main
git config --global gc.auto 0
git init -q
printf '%s\\n' '*.egg-info/' '__pycache__/' '*.py[cod]' '.pytest_cache/' >> .git/info/exclude
{steps}
git add -A
{install}
"""

# A new container gives files new inode numbers and ctimes: git, if it minded, would touch every object, and so copy the
# whole store into the instance's layer. The release's own versions of what the patches touch stay neither in the store
# nor as bytecode.
_INSTANCE = """\
cd /testbed
for name in test_patch patch; do
  [ -s /build/$name.diff ] || continue
  if git apply --check -R /build/$name.diff 2>/dev/null; then
    git apply -R /build/$name.diff
  elif ! git apply --check /build/$name.diff; then
    echo "$name neither applies to the sdist nor can be taken out of it" >&2
    exit 1
  fi
done
git -c core.checkStat=minimal -c core.trustctime=false add -A
git commit -q -m 'SWE-bench base from {sdist}'
git update-ref refs/replace/{commit} HEAD
git prune --expire=now
{install}
test -z "$(git status --short)"
"""

_END = """\
rm -rf /testbed/build /build /root/.cache
find /testbed -name __pycache__ -prune -exec rm -rf {} +
"""


@dataclass(frozen=True)
class ImageInfo:
    """One local image: `source` is `official`, `sdist`, `environment` or `base`; `digest` is its content id."""

    name: str
    digest: str
    source: str
    instance_id: str
    size_bytes: int


@dataclass(frozen=True)
class BuildResult:
    """The images that are here now, in the order asked for, and by instance id why others are not."""

    images: tuple[ImageInfo, ...]
    failures: dict[str, str]


def build(
    ids: Sequence[str], instances: Iterable[Instance], source: str, progress: Callable[[str], None]
) -> BuildResult:
    """Build what is missing of the images of `ids`; an image that is here already is left alone.

    `source` must be `sdist`. `progress` gets one line for each step. A build that fails does not keep the others from
    being tried. Raises `UserError` for an instance that the table does not have, and where nothing could be built.
    """
    if source != "sdist":
        raise UserError(f"--source {source}: must be sdist (official images come by `sweq images pull`)")
    if not ids:
        raise UserError("name the instances to build with -i, or take --all; `sweq images list` shows what there is")
    table, rows = _by_instance(), {instance.instance_id: instance for instance in instances}
    for instance_id in ids:
        if instance_id not in table:
            raise UserError(f"{instance_id}: not in {SDISTS.name}; `sweq images list` shows what is")
        if instance_id not in rows:
            raise UserError(f"{instance_id}: not among the data set's instances")
    client = connect()
    images, failures = [], {}
    for number, name in enumerate(ids, start=1):
        told = partial(_tell, progress, f"{number}/{len(ids)} {name}")
        try:
            images.append(_build_one(client, rows[name], table[name], told))
        except SandboxError as error:
            failures[name] = str(error)
            told(str(error))
    return BuildResult(tuple(images), failures)


def find_buildable(instances: Iterable[Instance]) -> list[str]:
    """Ids of those of `instances` that the table has, releases together; raises `UserError` if there are none."""
    known = {instance.instance_id for instance in instances}
    ids = [name for name in _by_instance() if name in known]
    if not ids:
        raise UserError(f"--all: the data set has no instance that is in {SDISTS.name}")
    return ids


def build_base(progress: Callable[[str], None] = lambda line: None, python: str = "3.11") -> str:
    """Build the base image of `python` unless it is here; returns its tag."""
    return debian.build_base(connect(), python, progress)


def list_images() -> list[str]:
    """One line for each local image of an instance, environment and base, then one for each release not all built."""
    images = sorted((info for image in connect().images.list() for info in _describe(image)), key=lambda i: i.name)
    built = {info.instance_id for info in images}
    lines = [f"{info.name}  {info.source}  {info.size_bytes / 1e6:.0f} MB  {info.digest[:19]}" for info in images]
    for release in load_releases():
        missing = [name for name in release.instances if name not in built]
        if missing:
            lines.append(f"{release.name}  not built: {' '.join(missing)}")
    return lines


def environment_layer(release: Release, base: str) -> Layer:
    """The layer of `release` on the image `base`, named by its recipe."""
    script = _START + _ENVIRONMENT.format(
        python=release.python,
        tools=shlex.join(_TOOLS),
        pins=f"python -m pip install -q --no-deps {shlex.join(release.pins)}" if release.pins else "",
        project=shlex.quote(release.project),
        sdist=shlex.quote(release.sdist),
        steps="\n".join(release.steps),
        install="python -m pip install -q --no-deps -e ." if release.editable else "",
    )
    unnamed = Layer("", base, script + _END, "environment", environment=release.environment)
    return replace(unnamed, tag=f"sweq/environment:{release.name}-{unnamed.recipe}")


def instance_layer(row: Instance, image: str, release: Release, environment: str) -> Layer:
    """The layer of one instance, called `image`, on its release's `environment`."""
    script = _INSTANCE.format(
        sdist=shlex.quote(release.sdist),
        commit=row.base_commit,
        # A copy in site-packages must be the copy of the tree without the fix.
        install="" if release.editable else "python -m pip install -q --no-deps --no-build-isolation .\nrm -rf build",
    )
    files = {"/build/test_patch.diff": row.test_patch, "/build/patch.diff": row.patch}
    labels = {"sweq.instance": row.instance_id}
    return Layer(image, environment, _START + script + _END, "sdist", files=files, labels=labels)


def build_environment(client: docker.DockerClient, release: Release, progress: Callable[[str], None]) -> str:
    """Build the environment of `release` unless it is here; returns its tag."""
    layer = environment_layer(release, debian.build_base(client, release.python, progress))
    with only_builder(layer.tag):
        if find_image(client, layer.tag) is None:
            progress(f"building {layer.tag}")
            commit_layer(client, layer)
    return layer.tag


def _build_one(
    client: docker.DockerClient, row: Instance, release: Release, progress: Callable[[str], None]
) -> ImageInfo:
    if row.image is None:
        raise UserError(f"{row.instance_id}: its row names no image")
    with only_builder(row.instance_id):
        found = find_image(client, row.image)
        if found is not None and found.labels.get("sweq.source") != "sdist":
            progress(f"{row.image} is here and not ours: left alone")
        else:
            layer = instance_layer(row, row.image, release, build_environment(client, release, progress))
            if found is None or found.labels.get("sweq.recipe") != layer.recipe:
                progress(f"building {row.image} from {release.sdist}")
                commit_layer(client, layer)
            else:
                progress(f"{row.image} is here already")
    return next(info for info in _describe(client.images.get(row.image)) if info.name == row.image)


def _tell(progress: Callable[[str], None], where: str, line: str) -> None:
    progress(f"{where}: {line}")


def _by_instance() -> dict[str, Release]:
    return {name: release for release in load_releases() for name in release.instances}


def _describe(image: Image) -> Iterator[ImageInfo]:
    """One entry for each of the image's tags that is a base's, an environment's or an instance's."""
    source = image.labels.get("sweq.source", "")
    for tag in image.tags:
        if source or "sweb.eval." in tag:
            instance_id = image.labels.get("sweq.instance", "")
            size = int(image.attrs.get("Size", 0))
            yield ImageInfo(tag, str(image.id), source or "official", instance_id, size)
