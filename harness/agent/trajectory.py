"""The record of one task: everything said, done and spent, rewritten whole after every step."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.agent.limit import Limit
from harness.agent.model import Message, Usage
from harness.errors import UserError
from harness.files import replace_file

FORMAT = "sweq-trajectory"
VERSION = 1


@dataclass(frozen=True)
class ActionRecord:
    """One action: `kind` is bash, edit, editor, submit or misuse; `subject` the command or path.

    Of an external agent it is a tool call: the tool's name and its arguments. `dropped` are characters.
    """

    kind: str
    subject: str
    exit_code: int | None
    timed_out: bool
    dropped: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One model call with what followed. `messages` is the length of the history after it; `number` counts from 1.

    `new_tokens` is what the token budget counts of it; 0 in trajectories of agents that counted every token again.
    """

    number: int
    messages: int
    seed: int
    usage: Usage
    max_tokens: int
    finish_reason: str
    seconds_model: float
    seconds_tools: float
    actions: tuple[ActionRecord, ...]
    format_error: str
    new_tokens: int = 0


@dataclass(frozen=True)
class Ending:
    """How the work ended. `error` is empty unless the machine failed, in which case the task is tried again."""

    limit: Limit
    submitted: bool
    patch_bytes: int
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass
class Trajectory:
    """`info` says who worked on what with which settings; `ending` is None while the work goes on."""

    info: dict[str, Any]
    messages: list[Message] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def usage(self) -> Usage:
        """Tokens of all steps together."""
        return sum((step.usage for step in self.steps), Usage())

    @property
    def new_tokens(self) -> int:
        """Tokens of all steps together, each counted once: see `Usage.new_tokens`."""
        return sum(step.new_tokens for step in self.steps)

    def write(self, path: Path) -> None:
        """Replace the file at `path` in one step that survives a crash."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        replace_file(path, json.dumps(content, indent=1).encode("ascii") + b"\n")


def read_trajectory(path: Path) -> Trajectory:
    """Read what `Trajectory.write` wrote; raises `UserError` for anything else."""
    try:
        content = json.loads(path.read_bytes())
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise UserError(f"{path}: format {content['format']} {content['version']}, not {FORMAT} {VERSION}")
        steps = [_step(step) for step in content["steps"]]
        ending = content["ending"]
        return Trajectory(content["info"], content["messages"], steps, _ending(ending) if ending else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no trajectory of this version of sweq ({type(error).__name__}: {error})") from error


def _step(content: dict[str, Any]) -> Step:
    actions = tuple(ActionRecord(**action) for action in content["actions"])
    return Step(**{**content, "usage": Usage(**content["usage"]), "actions": actions})


def _ending(content: dict[str, Any]) -> Ending:
    return Ending(**{**content, "limit": Limit(content["limit"]), "notes": tuple(content["notes"])})
