"""Answers with labels given by hand, on which a judge is calibrated before its points count."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from harness.errors import UserError

FOLDER = Path(__file__).parent / "calibration"
TASK = "benchmark-viz"
"""The task whose answers the set holds."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    page: str
    edits: tuple[tuple[str, str], ...] = ()
    labels: dict[str, bool]
    why: str


@dataclass(frozen=True)
class Labelled:
    """An answer (HTML `source`), made from `page` as its variants are, and what each criterion's label is."""

    id: str
    page: str
    source: str
    labels: dict[str, bool]
    why: str


def load_labelled(folder: Path = FOLDER) -> list[Labelled]:
    """The set of `folder`: `set.yaml` and `pages/<page>.html`. Raises `UserError` naming what is not right."""
    path = folder / "set.yaml"
    try:
        entries = TypeAdapter(tuple[_Entry, ...]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path}: not a labelled set: {' '.join(str(error).split())[:300]}") from error
    for name, times in Counter(entry.id for entry in entries).items():
        if times > 1:
            raise UserError(f"{path}: {name} appears more than once")
    return [_build(path, entry) for entry in entries]


def hash_set(items: list[Labelled]) -> str:
    """What is asked about and what was to be answered, as a hash."""
    return hashlib.sha256(json.dumps([asdict(item) for item in items], sort_keys=True).encode()).hexdigest()


def _build(path: Path, entry: _Entry) -> Labelled:
    page = path.parent / "pages" / f"{entry.page}.html"
    if not page.is_file():
        raise UserError(f"{path}: {entry.id}: no page {page}")
    source = page.read_text(encoding="utf-8")
    for old, new in entry.edits:
        if old not in source:
            raise UserError(f"{path}: {entry.id}: {page.name} has no {old!r}, which an edit replaces")
        source = source.replace(old, new)
    return Labelled(entry.id, entry.page, source, entry.labels, entry.why)
