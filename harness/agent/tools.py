"""What the agent can do in its sandbox: run a command, edit a file, submit."""

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.agent.editor import EditorCall, use_editor
from harness.agent.prompts import Prompts
from harness.agent.sandbox_files import EditError, decode, read_bytes, shorten, write_text
from harness.sandbox.base import TESTBED, ExecResult, Sandbox

if TYPE_CHECKING:
    # Training data is made on machines without pydantic.
    from harness.config import AgentConfig

SUBMIT_SENTINEL = "SWEQ_SUBMIT"
"""A command that succeeds and prints this as its first line submits, for agents that can only run commands."""


@dataclass(frozen=True)
class Bash:
    """Run `command` in a fresh shell."""

    command: str
    call_id: str = ""


@dataclass(frozen=True)
class Edit:
    """Replace the one occurrence of `old` in `path` by `new`, or create `path` where `old` is empty."""

    path: str
    old: str
    new: str
    call_id: str = ""


@dataclass(frozen=True)
class Submit:
    """End the work."""

    call_id: str = ""


@dataclass(frozen=True)
class Misuse:
    """A call that cannot be carried out, and why, in words for the model."""

    problem: str
    call_id: str = ""


Action = Bash | Edit | EditorCall | Submit | Misuse


@dataclass(frozen=True)
class Observation:
    """What an action did. `exit_code` is None where no command ran; `dropped` counts characters the model never saw."""

    text: str
    exit_code: int | None = None
    timed_out: bool = False
    dropped: int = 0
    submitted: bool = False


def perform(
    action: Action, sandbox: Sandbox, config: "AgentConfig", prompts: Prompts, *, timeout: float
) -> Observation:
    """Carry `action` out; commands end after `timeout` seconds. Raises `SandboxError` only."""
    if isinstance(action, Bash):
        return _run(action.command, sandbox, config, prompts, timeout)
    try:
        if isinstance(action, Edit):
            return Observation(edit(sandbox, action, timeout=timeout))
        if isinstance(action, EditorCall):
            text, dropped = use_editor(sandbox, action, limit=config.observation_limit, timeout=timeout)
            return Observation(text, dropped=dropped)
    except EditError as error:
        return Observation(f"error: {error}", exit_code=1)
    if isinstance(action, Submit):
        return Observation("submitted", submitted=True)
    return Observation(prompts.fill("call_error", problem=action.problem))


def _run(command: str, sandbox: Sandbox, config: "AgentConfig", prompts: Prompts, timeout: float) -> Observation:
    limit = config.observation_limit
    result = sandbox.exec(command, timeout=timeout, output_limit=8 * limit)
    shown, dropped = truncate(result, limit)
    if result.timed_out:
        text = prompts.fill("timeout", seconds=f"{timeout:g}", output=shown)
    else:
        text = prompts.fill("observation", exit_code=result.exit_code, output=shown or "(no output)")
    submitted = result.exit_code == 0 and result.output.lstrip().split("\n", 1)[0].strip() == SUBMIT_SENTINEL
    return Observation(text, result.exit_code, result.timed_out, dropped, submitted)


def truncate(result: ExecResult, limit: int) -> tuple[str, int]:
    """The first and last `limit / 2` characters of the output, and how many were left out between them.

    What the sandbox itself had dropped from the middle (bytes, taken as characters) is counted with them.
    """
    return shorten(result.output, limit, result.dropped_bytes)


def edit(sandbox: Sandbox, action: Edit, *, timeout: float) -> str:
    """Carry out one edit and say what was done; raises `EditError` with what to do instead.

    Bytes that are not UTF-8, line ends, permissions and symbolic links stay as they are.
    """
    path = posixpath.normpath(posixpath.join(TESTBED, action.path))
    content = read_bytes(sandbox, path)
    if not action.old:
        if content:
            raise EditError(f"{action.path} exists already. Give in `old` the text to replace, or choose another path.")
        write_text(sandbox, path, action.new, timeout)
        return f"created {action.path}"
    if content is None:
        raise EditError(f"{action.path} does not exist. To create it, leave `old` empty.")
    text = decode(content)
    write_text(sandbox, path, replace_once(text, action), timeout)
    line = text[: text.index(action.old)].count("\n") + 1
    return f"edited {action.path} at line {line}"


def replace_once(text: str, action: Edit) -> str:
    """`text` with the one occurrence of `action.old` replaced; raises `EditError` where there is no such one."""
    if action.old == action.new:
        raise EditError("`old` and `new` are the same, so nothing would change.")
    count = text.count(action.old)
    if count == 0 and "\r\n" in text and text.replace("\r\n", "\n").count(action.old) == 1:
        raise EditError(f"{action.path} has CRLF line ends. Write \\r\\n in `old` and `new`, or edit a single line.")
    if count == 0:
        raise EditError(
            f"`old` does not occur in {action.path}. Read the file again and copy the text exactly, "
            "with its indentation and without line numbers."
        )
    if count > 1:
        raise EditError(f"`old` occurs {count} times in {action.path}. Add lines around it until it occurs once.")
    return text.replace(action.old, action.new)
