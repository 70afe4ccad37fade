"""The files around a generated package's modules, and diffs."""

import difflib
from collections.abc import Sequence

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Module, public_names

_IGNORED = "__pycache__/\n.pytest_cache/\n"


def write_surroundings(draw: Draw, package: str, modules: Sequence[Module]) -> dict[str, str]:
    """README, pyproject.toml, .gitignore and the package's `__init__.py`, by path."""
    ordered = sorted(modules, key=lambda module: module.name)
    about = draw.pick("Small helpers", "Tools of one team", "Odds and ends", "A few useful parts", "Shared code")
    lines = [f"- `{package}.{module.name}`: {_lower(module.about)}" for module in ordered]
    version = f"{draw.number(0, 3)}.{draw.number(0, 9)}"
    return {
        ".gitignore": _IGNORED,
        "README.md": f"# {package}\n\n{about}.\n\n" + "\n".join(lines) + "\n",
        "pyproject.toml": _write_project(package, version, about),
        f"{package}/__init__.py": _write_init(draw, package, about, ordered),
    }


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _write_project(package: str, version: str, about: str) -> str:
    return (
        f'[project]\nname = "{package}"\nversion = "{version}"\ndescription = "{about}"\n'
        'requires-python = ">=3.9"\n\n[tool.pytest.ini_options]\ntestpaths = ["tests"]\npythonpath = ["."]\n'
    )


def _write_init(draw: Draw, package: str, about: str, modules: Sequence[Module]) -> str:
    text = f'"""{about}."""\n'
    if draw.flip(0.7):
        return text
    imports = [f"from {package}.{each.name} import {', '.join(sorted(public_names(each.text)))}" for each in modules]
    return text + "\n" + "\n".join(imports) + "\n"


def diff_file(path: str, before: str | None, after: str) -> str:
    """A git diff of one file; `before` is None for a new one. Every text ends with a line feed."""
    old = [] if before is None else before.splitlines(keepends=True)
    source = "/dev/null" if before is None else f"a/{path}"
    lines = difflib.unified_diff(old, after.splitlines(keepends=True), source, f"b/{path}")
    mode = "new file mode 100644\n" if before is None else ""
    return f"diff --git a/{path} b/{path}\n{mode}" + "".join(lines)
