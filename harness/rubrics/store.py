"""What a rubric run leaves behind: per answer a folder, whole or absent, whatever kills the process."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import UserError
from harness.files import replace_file
from harness.rubrics.examine import Examined
from harness.rubrics.score import Check, Fact, Score
from harness.rubrics.task import RubricTask

PICTURE = "1280.png"
"""The picture, of those that the checks take, that a judge is shown."""


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

    @property
    def judge(self) -> Path:
        """A judge's verdicts, each with its votes."""
        return self.root / "judge.json"

    @property
    def pair(self) -> Path:
        """A judge's preference between this answer and the baseline's."""
        return self.root / "pair.json"


@dataclass(frozen=True)
class Sample:
    """One answer to be asked for, checked or judged."""

    level: str
    task: RubricTask
    number: str
    paths: SamplePaths


@dataclass(frozen=True)
class Judged:
    """What a judge made of a sample: `points` beside the executable score, None unless `status` is `scored`.

    `outcomes` by criterion; `pair` is how it fared beside the baseline's answer, None where that was not asked.
    """

    status: Literal["scored", "unscored", "infra"]
    points: float | None
    outcomes: dict[str, str]
    pair: str | None = None


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
    judged: Judged | None = None


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


def read_facts(paths: SamplePaths) -> dict[str, Fact]:
    """The facts below a sample's score."""
    return {name: Fact(fact["value"], fact["evidence"]) for name, fact in _read(paths.score)["facts"].items()}


def read_judged(paths: SamplePaths, version: int) -> dict[str, Any] | None:
    """The verdicts on a sample by this version of its task, None where there are none."""
    document = _read(paths.judge) if paths.judge.exists() else {}
    return document if document.get("version") == version else None


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
            judged = _load_judged(SamplePaths(path.parent), document["version"])
            yield Scored(
                path.parts[-5], document["task"], document["version"], path.parts[-2], score, **usage, judged=judged
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a score of this version of sweq ({error}); remove it and run again"
            ) from error


def _load_judged(paths: SamplePaths, version: int) -> Judged | None:
    document = read_judged(paths, version)
    if document is None:
        return None
    outcomes = {verdict["criterion"]: verdict["outcome"] for verdict in document["criteria"]}
    pair = _read(paths.pair)["outcome"] if paths.pair.exists() else None
    return Judged(document["status"], document["points"], outcomes, pair)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove the file and run the same command again") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a JSON object; remove the file and run the same command again")
    return document
