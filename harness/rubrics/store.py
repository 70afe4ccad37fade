"""What a rubric run leaves behind: per answer a folder, whole or absent, whatever kills the process."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import replace_file
from harness.rubrics.examine import Examined
from harness.rubrics.score import Check, Score
from harness.rubrics.task import RubricTask


@dataclass(frozen=True)
class SamplePaths:
    """One answer's folder: `<run>/levels/<level>/rubrics/<task>/<sample>`."""

    root: Path

    @property
    def answer(self) -> Path:
        """What the model wrote; written first, never again."""
        return self.root / "answer.md"

    @property
    def score(self) -> Path:
        """Score, checks and evidence; written last: where it exists, the sample is done."""
        return self.root / "score.json"


@dataclass(frozen=True)
class Scored:
    """One sample as the tables see it."""

    level: str
    task: str
    version: int
    sample: str
    score: Score
    completion_tokens: int = 0
    finish_reason: str = ""


def sample_paths(run: Path, level: str, task: str, sample: str) -> SamplePaths:
    """The folder of one answer."""
    return SamplePaths(run / "levels" / level / "rubrics" / task / sample)


def save_answer(paths: SamplePaths, text: str, completion_tokens: int, finish_reason: str) -> None:
    """Keep an answer and what it took; the answer file comes last and marks it as whole."""
    usage = {"completion_tokens": completion_tokens, "finish_reason": finish_reason}
    replace_file(paths.root / "usage.json", json.dumps(usage).encode() + b"\n")
    replace_file(paths.answer, text.encode("utf-8", "replace"))


def save_score(paths: SamplePaths, task: RubricTask, examined: Examined) -> None:
    """Keep the pictures, then the score with all facts."""
    for name, data in examined.pictures.items():
        replace_file(paths.root / name, data)
    document = {
        "task": task.name,
        "version": task.file.version,
        **asdict(examined.score),
        "facts": {name: asdict(fact) for name, fact in sorted(examined.facts.items())},
        "pictures": sorted(examined.pictures),
    }
    replace_file(paths.score, json.dumps(document, indent=1).encode() + b"\n")


def is_scored(paths: SamplePaths, task: RubricTask) -> bool:
    """Whether the sample has a score by this version of the task; one that the machine spoilt is tried again."""
    if not paths.score.exists():
        return False
    document = _read(paths.score)
    return document.get("version") == task.file.version and document.get("status") == "scored"


def load_scores(run: Path) -> list[Scored]:
    """All scored samples of a run, sorted by level, task and sample."""
    return sorted(_scores(run), key=lambda one: (one.level, one.task, one.sample))


def _scores(run: Path) -> Iterator[Scored]:
    for path in run.glob("levels/*/rubrics/*/*/score.json"):
        document = _read(path)
        try:
            score = Score(
                document["status"],
                document["compat"],
                document["hidden"],
                tuple(Check(**check) for check in document["checks"]),
                document["reason"],
            )
            usage_file = path.parent / "usage.json"
            usage = _read(usage_file) if usage_file.exists() else {}
            yield Scored(path.parts[-5], document["task"], document["version"], path.parts[-2], score, **usage)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a score of this version of sweq ({error}); remove it and run again"
            ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove the file and run the same command again") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a JSON object; remove the file and run the same command again")
    return document
