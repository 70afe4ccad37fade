"""Base images from debootstrap: `sweq/base:<suite>-<hash>`, one for each Python that a Debian suite ships.

They hold Python, git, a compiler, and what stands in for conda: the official eval scripts source `activate` and call
`conda activate testbed`. Packages go into the system's own prefix, not into a virtual environment: `tox --current-env`
follows the interpreter to its home and loses a virtual environment's packages.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker

from harness.errors import SandboxError, UserError
from harness.sandbox.images.layers import find_image, hash_recipe, only_builder
from harness.sandbox.supervise import last_line

SUITES = {"3.9": "bullseye", "3.11": "bookworm"}
"""The Debian suite that ships a Python."""
_PACKAGES = "python3,python3-dev,python3-pip,git,build-essential,ca-certificates,locales,patch"
_PREFIX = "opt/miniconda3/envs/testbed/bin"

# The official scripts source this under `set -u`, then call `conda activate testbed`.
_ACTIVATE = f"""\
conda() {{ :; }}
case ":$PATH:" in
  *:/{_PREFIX}:*) ;;
  *) export PATH="/{_PREFIX}:$PATH" ;;
esac
export CONDA_DEFAULT_ENV=testbed
"""


def build_base(client: docker.DockerClient, python: str, progress: Callable[[str], None]) -> str:
    """Build the base image of `python` (a key of `SUITES`) unless it is here; returns its tag."""
    suite = SUITES[python]
    recipe = hash_recipe(suite, _PACKAGES, _ACTIVATE)
    tag = f"sweq/base:{suite}-{recipe}"
    with only_builder(tag):
        if find_image(client, tag) is None:
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
    _stand_in_for_conda(root)
    _call("tar", "-c", "-f", str(archive), "--numeric-owner", "--exclude=./dev/*", "-C", str(root), ".")
    return archive


def _stand_in_for_conda(root: Path) -> None:
    prefix = root / _PREFIX
    prefix.mkdir(parents=True)
    for name in ("python", "python3"):
        (prefix / name).symlink_to("/usr/bin/python3")
    activate = root / "opt/miniconda3/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(_ACTIVATE)


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
