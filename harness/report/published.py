"""Figures that others published, as data under `results/published/`: each with source and date."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"


@dataclass(frozen=True)
class Published:
    """One published score: `score` in percent of solved instances of `benchmark`."""

    model: str
    score: float
    scaffold: str
    level: str
    repeats: str
    source: str
    date: str


@dataclass(frozen=True)
class PublishedRubrics:
    """Published scores of rubric tasks, 0 to 10 by task."""

    model: str
    source: str
    date: str
    differs: str
    scores: dict[str, float]


def load_scores(path: Path = FOLDER / "swe-bench-verified.yaml") -> list[Published]:
    """Published scores of SWE-bench Verified, none where no file is shipped; `UserError` that names a bad entry."""
    return [_read(Published, entry, path) for entry in _entries(path)]


def load_rubrics(path: Path = FOLDER / "16x.yaml") -> list[PublishedRubrics]:
    """Published rubric scores, none where the file is not shipped; `UserError` that names a bad entry."""
    return [_read(PublishedRubrics, entry, path) for entry in _entries(path)]


def _entries(path: Path) -> list[Any]:
    if not path.exists():
        return []
    try:
        entries = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of entries")
    return entries


def _read(kind: Any, entry: Any, path: Path) -> Any:
    try:
        found = {key: str(value) if isinstance(value, datetime.date) else value for key, value in entry.items()}
        return kind(**found)
    except (TypeError, AttributeError) as error:
        keys = ", ".join(kind.__dataclass_fields__)
        raise UserError(f"{path}: {str(entry)[:60]}: expected the keys {keys}") from error
