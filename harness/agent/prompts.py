"""The words of a profile, read from `prompts.yaml`."""

import hashlib
import json
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import yaml

from harness.errors import UserError

_FILE = Path(__file__).with_name("prompts.yaml")


class Prompts:
    """Templates of one profile. `fill` raises `UserError` where a template is missing or names an unknown value."""

    def __init__(self, profile: str, templates: dict[str, Any]) -> None:
        self.profile = profile
        self._templates = templates

    @property
    def demonstration(self) -> list[dict[str, str]]:
        """Messages of a small worked example, shown between the system message and the task; often there is none."""
        turns = self._templates.get("demonstration", [])
        return [{"role": turn["role"], "content": turn["content"].rstrip("\n")} for turn in turns]

    def fill(self, name: str, **values: object) -> str:
        """Template `name` with its `$values` filled in; text inside a value is never expanded again."""
        if name not in self._templates:
            raise UserError(f"{_FILE.name}: profile {self.profile} has no template {name!r}")
        try:
            return Template(self._templates[name]).substitute(values).rstrip("\n")
        except (KeyError, ValueError) as error:
            known = ", ".join(f"${value}" for value in sorted(values))
            raise UserError(f"{_FILE.name}: {self.profile}.{name}: {error}; it may use {known}") from error

    def digest(self, *others: Any) -> str:
        """sha256 (hex) over all templates and `others` (JSON-ready), by which runs are known to be comparable."""
        content = json.dumps([self.profile, self._templates, *others], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@cache
def load_prompts(profile: str) -> Prompts:
    """The templates of `profile`; raises `UserError` for a profile that `prompts.yaml` does not have."""
    profiles = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    if profile not in profiles:
        raise UserError(f"{_FILE.name}: no profile {profile!r}; there are {', '.join(sorted(profiles))}")
    return Prompts(profile, profiles[profile])
