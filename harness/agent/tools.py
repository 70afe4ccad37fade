"""What the agent can do in its sandbox: run a command, edit a file, submit."""

import posixpath
import shlex
from dataclasses import dataclass

from harness.agent.model import Message
from harness.agent.prompts import Prompts
from harness.config import AgentConfig
from harness.errors import SandboxError
from harness.sandbox.base import TESTBED, ExecResult, Sandbox

SUBMIT_SENTINEL = "SWEQ_SUBMIT"
"""A command that succeeds and prints this as its first line submits, for agents that can only run commands."""

_STAGE = "/tmp/.sweq-edit"

SCHEMA: tuple[Message, ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": text} for key, text in arguments.items()},
                "required": list(arguments),
            },
        },
    }
    for name, description, arguments in (
        (
            "bash",
            f"Run a command in a fresh bash in {TESTBED}; gives its exit code, and stdout and stderr together.",
            {"command": "The command, or several lines of them."},
        ),
        (
            "edit",
            "Replace one piece of text in a file, or create a file.",
            {
                "path": f"The file, absolute or relative to {TESTBED}.",
                "old": "The text to replace, exactly as it stands in the file, indentation included; it must occur "
                "once. Empty to create a file.",
                "new": "The text to put in its place, or the whole content of the new file.",
            },
        ),
        ("submit", "Hand in the work as it lies in the repository. Nothing can be done afterwards.", {}),
    )
)


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


Action = Bash | Edit | Submit | Misuse


@dataclass(frozen=True)
class Observation:
    """What an action did. `exit_code` is None where no command ran; `dropped` counts characters the model never saw."""

    text: str
    exit_code: int | None = None
    timed_out: bool = False
    dropped: int = 0
    submitted: bool = False


class EditError(Exception):
    """An edit that does not fit the file; the message tells the model how to mend it."""


def perform(action: Action, sandbox: Sandbox, config: AgentConfig, prompts: Prompts, *, timeout: float) -> Observation:
    """Carry `action` out; commands end after `timeout` seconds. Raises `SandboxError` only."""
    if isinstance(action, Bash):
        return _run(action.command, sandbox, config, prompts, timeout)
    if isinstance(action, Edit):
        try:
            return Observation(edit(sandbox, action, timeout=timeout))
        except EditError as error:
            return Observation(f"error: {error}", exit_code=1)
    if isinstance(action, Submit):
        return Observation("submitted", submitted=True)
    return Observation(prompts.fill("call_error", problem=action.problem))


def _run(command: str, sandbox: Sandbox, config: AgentConfig, prompts: Prompts, timeout: float) -> Observation:
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
    output = result.output
    if len(output) <= limit and not result.dropped_bytes:
        return output, 0
    head = min(limit, len(output)) // 2
    tail = min(limit, len(output)) - head
    dropped = len(output) - head - tail + result.dropped_bytes
    note = f"\n[... {dropped} characters left out; narrow the command down to see them ...]\n"
    return output[:head] + note + output[len(output) - tail :], dropped


def edit(sandbox: Sandbox, action: Edit, *, timeout: float) -> str:
    """Carry out one edit and say what was done; raises `EditError` with what to do instead.

    Bytes that are not UTF-8, line ends, permissions and symbolic links stay as they are.
    """
    path = posixpath.normpath(posixpath.join(TESTBED, action.path))
    content = _read(sandbox, path)
    if not action.old:
        if content:
            raise EditError(f"{action.path} exists already. Give in `old` the text to replace, or choose another path.")
        _write(sandbox, path, action.new, timeout)
        return f"created {action.path}"
    if content is None:
        raise EditError(f"{action.path} does not exist. To create it, leave `old` empty.")
    text = content.decode("utf-8", "surrogateescape")
    _write(sandbox, path, _replace_once(text, action), timeout)
    line = text[: text.index(action.old)].count("\n") + 1
    return f"edited {action.path} at line {line}"


def _read(sandbox: Sandbox, path: str) -> bytes | None:
    try:
        return sandbox.read_file(path)
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise EditError(f"{path} is a folder. Give the path of a file.") from error
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error.strerror or error}") from error


def _replace_once(text: str, action: Edit) -> str:
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


def _write(sandbox: Sandbox, path: str, text: str, timeout: float) -> None:
    """Write through the shell: it keeps permissions and symbolic links, and what it cannot write is the agent's error,
    where the sandbox's own `write_file` could only report that the sandbox failed.
    """
    try:
        sandbox.write_file(_STAGE, text.encode("utf-8", "surrogateescape"))
    except (OSError, SandboxError) as error:
        # A disk that the agent has filled is its own affair; a sandbox that is gone raises again here.
        sandbox.exec("true", timeout=timeout)
        raise EditError(f"{path} cannot be written: {error}") from error
    folder, target = shlex.quote(posixpath.dirname(path)), shlex.quote(path)
    result = sandbox.exec(f"mkdir -p -- {folder} && cat {_STAGE} > {target} && rm {_STAGE}", timeout=timeout)
    if result.exit_code != 0:
        raise EditError(f"{path} cannot be written: {result.output.strip()}")
