"""Where the checks' own tools lie: TypeScript, vitest, pglite, chart libraries, and the two programs that run them."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.rubrics.task import SHARED

FOLDER_VARIABLE = "SWEQ_RUBRICS_TOOLS"
_DEFAULT = Path(".rubrics")
_LEAST_NODE = 20


@dataclass(frozen=True)
class Toolchain:
    """`folder` holds `node_modules` as `package-lock.json` names them; `chromium` is the browser's program."""

    folder: Path
    chromium: str

    @property
    def versions(self) -> dict[str, str]:
        """Version of each direct dependency, for the record of a run."""
        wanted = json.loads((SHARED / "package.json").read_text())["dependencies"]
        return {name: _installed(self.folder, name) or "" for name in wanted}


def find_toolchain() -> Toolchain:
    """The installed tools; raises `UserError` with the command that brings what is missing."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or _DEFAULT).absolute()
    wanted: dict[str, str] = json.loads((SHARED / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        found = _installed(folder, name)
        if found != version:
            raise UserError(
                f"{folder}: {name} {version} is not installed there ({found or 'nothing'} is): run `make rubrics-setup`"
            )
    if shutil.which("node") is None:
        raise UserError(f"no node on PATH: rubric checks need Node.js {_LEAST_NODE} or newer (apt-get install nodejs)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("no chromium on PATH: the visualization task renders in it (apt-get install chromium)")
    return Toolchain(folder, chromium)


def _installed(folder: Path, name: str) -> str | None:
    path = folder / "node_modules" / name / "package.json"
    return str(json.loads(path.read_text())["version"]) if path.is_file() else None
