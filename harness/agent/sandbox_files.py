"""Reading and writing the sandbox's files for an agent, whose mistakes come back to it as advice."""

import shlex

from harness.errors import SandboxError
from harness.sandbox.base import Sandbox

_STAGE = "/tmp/.sweq-edit"


class EditError(Exception):
    """An edit that does not fit the file; the message tells the model how to mend it."""


def read_bytes(sandbox: Sandbox, path: str) -> bytes | None:
    """The content of `path`, None where there is nothing; raises `EditError` for what is no readable file."""
    try:
        return sandbox.read_file(path)
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise EditError(f"{path} is a folder. Give the path of a file.") from error
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error.strerror or error}") from error


def decode(content: bytes) -> str:
    """The content as text that `write_text` turns back into the same bytes."""
    return content.decode("utf-8", "surrogateescape")


def show(text: str) -> str:
    """`decode`d text as a model may see it: bytes that are not UTF-8 replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def write_text(sandbox: Sandbox, path: str, text: str, timeout: float) -> None:
    """Write through the shell: it keeps permissions and symbolic links, and what it cannot write is the agent's error,
    where the sandbox's own `write_file` could only report that the sandbox failed.
    """
    try:
        sandbox.write_file(_STAGE, text.encode("utf-8", "surrogateescape"))
    except (OSError, SandboxError) as error:
        # A disk that the agent has filled is its own affair; a sandbox that is gone raises again here.
        sandbox.exec("true", timeout=timeout)
        raise EditError(f"{path} cannot be written: {error}") from error
    target = shlex.quote(path)
    result = sandbox.exec(
        f'mkdir -p -- "$(dirname -- {target})" && cat {_STAGE} > {target} && rm {_STAGE}', timeout=timeout
    )
    if result.exit_code != 0:
        raise EditError(f"{path} cannot be written: {result.output.strip()}")


def shorten(text: str, limit: int, dropped: int = 0) -> tuple[str, int]:
    """The first and last `limit / 2` characters of `text`, and how many were left out between them.

    `dropped` is what had been lost from the middle before, and counts with them.
    """
    if len(text) <= limit and not dropped:
        return text, 0
    head = min(limit, len(text)) // 2
    tail = min(limit, len(text)) - head
    dropped += len(text) - head - tail
    note = f"\n[... {dropped} characters left out; narrow the command down to see them ...]\n"
    return text[:head] + note + text[len(text) - tail :], dropped
