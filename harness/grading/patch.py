"""A model's patch: normalised, read, applied."""

import re
import shlex
from dataclasses import dataclass

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from harness.errors import SandboxError
from harness.sandbox.base import Sandbox
from harness.sandbox.supervise import last_line

PATCH_PATH = "/tmp/patch.diff"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
# A path may itself hold " b/": where both sides are the same, that settles it. 4096 is the longest path Linux takes.
_GIT_HEADER = re.compile(
    rf"^diff --git (?:(?P<same>a/(?P<path>.{{1,4096}})) b/(?P=path)|(?P<old>{_QUOTED}|a/.+?) (?P<new>{_QUOTED}|b/.+))$",
    re.MULTILINE,
)
_SIDE_HEADER = re.compile(r"^(?:---|\+\+\+) ([^\t\n]+)", re.MULTILINE)

# Order and options of swebench 5.0.2; each attempt is laxer than the one before.
_APPLY_COMMANDS = (
    "git apply --verbose",
    "git apply --verbose --3way",
    "git apply --verbose --reject",
    "patch --batch --forward --fuzz=5 -p1 -i",
)
# `--reject` leaves half a patch behind, on which every later attempt would fail.
_RESET_COMMAND = "git checkout -- . ; git clean -fd"
_REVERSE_CHECK = "git apply --check --reverse"


@dataclass(frozen=True)
class Application:
    """Whether the patch is in the tree, and what the last attempt printed."""

    applied: bool
    output: str


def normalise(patch: str | None) -> str:
    """The patch as it is applied: "" for none, and ending in a newline, without which `git apply` calls it corrupt."""
    return patch + "\n" if patch and not patch.endswith("\n") else patch or ""


def encode(patch: str) -> bytes:
    """UTF-8; bytes that were no UTF-8 when the patch was read (surrogate escapes) come back as they were.

    Raises `UnicodeEncodeError` for characters that no byte sequence decodes to.
    """
    return patch.encode("utf-8", "surrogateescape")


def touched_paths(patch: str) -> list[str]:
    """Sorted paths, relative to the repository, that a patch adds, changes, deletes or renames.

    A malformed patch still says in its headers what it meant to touch.
    """
    sides = {side for match in _GIT_HEADER.finditer(patch) for side in match.group("same", "old", "new") if side}
    try:
        sides.update(side for file in PatchSet(patch) for side in (file.source_file, file.target_file))
    except UnidiffParseError:
        sides.update(match[1] for match in _SIDE_HEADER.finditer(patch))
    names = map(_unquote, sides)
    return sorted({name.partition("/")[2] for name in names if name != "/dev/null" and "/" in name})


def restore_tests(sandbox: Sandbox, test_patch: str, base_commit: str, *, timeout: float = 300.0) -> None:
    """Put the files that `test_patch` touches back to `base_commit`; those that it will add are removed.

    The official script asks git for all of them at once, and git restores none where one does not exist yet, so that
    a patch which made that file decides its own tests. Raises `SandboxError` where a file cannot be put back.
    """
    # Without its commit no file would be known, and all of them would be removed.
    if sandbox.exec(f"git cat-file -e {base_commit}^{{commit}}", timeout=timeout).exit_code != 0:
        raise SandboxError(f"{base_commit}: no such commit in the sandbox; the test files cannot be restored")
    for path in touched_paths(test_patch):
        name, known = shlex.quote(path), shlex.quote(f"{base_commit}:{path}")
        put_back = f"git --literal-pathspecs checkout -q {base_commit} -- {name}"
        command = f"if git cat-file -e {known} 2>/dev/null; then {put_back}; else rm -rf -- {name}; fi"
        done = sandbox.exec(command, timeout=timeout)
        if done.exit_code != 0:
            raise SandboxError(f"{path}: cannot be restored from {base_commit[:12]}: {last_line(done.output)}")


def _unquote(name: str) -> str:
    """git quotes names outside ASCII as C strings of their UTF-8 bytes."""
    if not (name.startswith('"') and name.rstrip().endswith('"')):
        return name
    escaped = name.rstrip()[1:-1].encode("ascii", "backslashreplace")
    return escaped.decode("unicode_escape").encode("latin-1", "replace").decode("utf-8", "replace")


def apply_patch(sandbox: Sandbox, patch: str, *, timeout: float = 300.0) -> Application:
    """Apply a non-empty patch to `/testbed` as the official grader does; `timeout` is in seconds per command."""
    sandbox.write_file(PATCH_PATH, encode(normalise(patch)))
    output = ""
    for attempt, command in enumerate(_APPLY_COMMANDS):
        if attempt:
            sandbox.exec(_RESET_COMMAND, timeout=timeout)
        result = sandbox.exec(f"{command} {PATCH_PATH}", timeout=timeout)
        output = result.output
        if result.exit_code == 0:
            return Application(True, output)
    # Each command can exit non-zero and still leave the whole patch applied between them.
    checked = sandbox.exec(f"{_REVERSE_CHECK} {PATCH_PATH}", timeout=timeout)
    return Application(checked.exit_code == 0, output)
