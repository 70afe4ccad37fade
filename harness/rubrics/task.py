"""A rubric task: one folder with its prompt, fixture, checks, rubric and graded answers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.rubrics.answer import ANSWER_FACTS, Extraction
from harness.rubrics.score import JudgedRule, Rubric

TASKS = Path(__file__).parent / "tasks"
SHARED = Path(__file__).parent / "node"


class TaskFile(BaseModel):
    """`task.yaml`. A change that can move a score raises `version`; scores of two versions are not compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    difficulty: str
    version: int = Field(ge=1)
    prompt: str = Field(min_length=1)
    shows: tuple[str, ...] = Field(default=(), description="fixture files that the prompt quotes, in this order")
    extraction: Extraction
    max_tokens: int = Field(default=4_096, ge=1)
    tries: int = Field(default=1, ge=1, description="answers of which the original rules count the best")
    timeout: float = Field(default=300.0, gt=0, description="seconds for all checks of an answer")
    facts: tuple[str, ...] = Field(description="what check.mjs must report")
    rubric: Rubric


@dataclass(frozen=True)
class RubricTask:
    """A task as it lies in `folder`."""

    name: str
    folder: Path
    file: TaskFile

    def prompt(self) -> str:
        """What the model is asked: the text of `task.yaml`, with each shown fixture file in a fenced block."""
        parts = [self.file.prompt.strip()]
        for name in self.file.shows:
            text = (self.folder / "fixture" / name).read_text(encoding="utf-8").rstrip("\n")
            fence = "````" if "```" in text else "```"
            parts.append(f"`{name}`:\n\n{fence}{_language(name)}\n{text}\n{fence}")
        return "\n\n".join(parts) + "\n"

    def files(self) -> dict[str, bytes]:
        """What the sandbox gets, by path under its working folder: fixture, checks and their shared modules."""
        fixture = self.folder / "fixture"
        found = {str(path.relative_to(fixture)): path for path in sorted(fixture.rglob("*")) if path.is_file()}
        found |= {path.name: path for path in sorted(SHARED.glob("*.mjs"))}
        found |= {path.name: path for path in sorted(self.folder.glob("*.*")) if path.name != "task.yaml"}
        return {name: path.read_bytes() for name, path in found.items()}


def load_tasks(names: tuple[str, ...] = (), root: Path = TASKS) -> list[RubricTask]:
    """The tasks that `names` lists (all if empty), in the order of their names.

    Raises `UserError` naming the unknown task, or the file and the key that is not right.
    """
    known = sorted(path.parent.name for path in root.glob("*/task.yaml"))
    for name in names:
        if name not in known:
            raise UserError(f"tasks: no rubric task {name!r}; there are {', '.join(known)}")
    return [_load(root / name) for name in known if not names or name in names]


def find_judged(tasks: Iterable[RubricTask]) -> list[JudgedRule]:
    """All rules of `tasks` that a judge is asked about."""
    return [rule for task in tasks for rule in task.file.rubric.judged]


def _load(folder: Path) -> RubricTask:
    path = folder / "task.yaml"
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = TaskFile.model_validate(data)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    unknown = sorted(file.rubric.facts() - set(file.facts) - ANSWER_FACTS)
    if unknown:
        raise UserError(f"{path}: rubric: asks for {unknown[0]}, which `facts` does not list")
    return RubricTask(folder.name, folder, file)


def _language(name: str) -> str:
    suffix = name.rpartition(".")[2]
    return {"mjs": "js", "md": "markdown"}.get(suffix, suffix)
