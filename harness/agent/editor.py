"""The editor of the `editor` profile: look at files and change them, with an answer that says what was wrong."""

import posixpath
import shlex
from dataclasses import dataclass

from harness.agent.sandbox_files import EditError, decode, read_bytes, shorten, show, write_text
from harness.sandbox.base import TESTBED, Sandbox

_AROUND = 4
"""Lines shown before and after a change."""

_LINES_NAMED = 8

_NEEDED = {"create": ("file_text",), "str_replace": ("old_str",), "insert": ("insert_line", "new_str")}


@dataclass(frozen=True)
class EditorCall:
    """`command` is view, create, str_replace or insert; it says which of the other arguments count."""

    command: str
    path: str
    file_text: str | None = None
    old_str: str | None = None
    new_str: str | None = None
    insert_line: int | None = None
    view_range: list[int] | None = None
    call_id: str = ""


def use_editor(sandbox: Sandbox, call: EditorCall, *, limit: int, timeout: float) -> tuple[str, int]:
    """Carry `call` out: what the model is told, in at most about `limit` characters, and how many it is not shown.

    Raises `EditError` with what to do instead. Bytes that are not UTF-8, permissions and symbolic links stay.
    """
    for name in _NEEDED.get(call.command, ()):
        if getattr(call, name) is None:
            raise EditError(f"{call.command} needs the argument {name!r}.")
    if not call.path.startswith("/"):
        raise EditError(f"{call.path} is no absolute path. Did you mean {posixpath.join(TESTBED, call.path)}?")
    if call.command == "view":
        return shorten(_view(sandbox, call, timeout), limit)
    return shorten(_change(sandbox, call, timeout), limit)


def _view(sandbox: Sandbox, call: EditorCall, timeout: float) -> str:
    folder = sandbox.exec(f"test -d {shlex.quote(call.path)}", timeout=timeout, cwd="/").exit_code == 0
    if folder and call.view_range:
        raise EditError(f"{call.path} is a folder, and view_range is for files. Leave it out.")
    if folder:
        return _list(sandbox, call.path, timeout)
    text = _read(sandbox, call.path, "Look for it with the tool bash.")
    lines = _lines(text)
    first, last = _range(call, len(lines))
    if not lines:
        return f"{call.path} is empty."
    return f"{call.path}, lines {first} to {last} of {len(lines)}:\n{_number(lines, first, last)}"


def _list(sandbox: Sandbox, path: str, timeout: float) -> str:
    find = f"find -H {shlex.quote(path)} -mindepth 1 -maxdepth 2 -name '.*' -prune -o -printf '%P%y\\n'"
    result = sandbox.exec(find, timeout=timeout, cwd="/")
    names = sorted(line[:-1] + ("/" if line.endswith("d") else "") for line in result.output.splitlines() if line)
    return f"{path}, two levels deep, hidden files left out:\n" + "\n".join(names)


def _range(call: EditorCall, count: int) -> tuple[int, int]:
    """First and last line to show, both counted from 1."""
    if not call.view_range:
        return 1, count
    if len(call.view_range) != 2:
        raise EditError(f"view_range has {len(call.view_range)} numbers. Give two: the first and the last line.")
    first, last = call.view_range
    if not 1 <= first <= max(count, 1):
        raise EditError(f"view_range starts at line {first}, but {call.path} has lines 1 to {count}.")
    if last != -1 and last < first:
        raise EditError(f"view_range ends at line {last}, before it starts. Use -1 for the end of the file.")
    return first, count if last == -1 else min(last, count)


def _change(sandbox: Sandbox, call: EditorCall, timeout: float) -> str:
    if call.command == "create":
        if read_bytes(sandbox, call.path) is not None:
            raise EditError(f"{call.path} exists already. Change it with str_replace, or choose another path.")
        write_text(sandbox, call.path, call.file_text or "", timeout)
        return f"created {call.path}"
    text = _read(sandbox, call.path, "Make it with create.")
    start, removed, added = _replacement(call, text) if call.command == "str_replace" else _insertion(call, text)
    changed = text[:start] + added + text[start + len(removed) :]
    write_text(sandbox, call.path, changed, timeout)
    first = changed[:start].count("\n") + 1
    last = first + max(added.count("\n") - added.endswith("\n"), 0)
    lines = _lines(changed)
    shown = _number(lines, max(first - _AROUND, 1), min(last + _AROUND, len(lines)))
    return f"edited {call.path}. Around the change it now reads:\n{shown}"


def _replacement(call: EditorCall, text: str) -> tuple[int, str, str]:
    """Where `old_str` stands in the text, itself, and what takes its place."""
    old, new = call.old_str or "", call.new_str or ""
    if not old:
        raise EditError("old_str is empty. Give the text to replace, or use insert.")
    if old == new:
        raise EditError("old_str and new_str are the same, so nothing would change.")
    count = text.count(old)
    if count == 0 and "\r\n" in text and text.replace("\r\n", "\n").count(old) == 1:
        raise EditError(f"{call.path} has CRLF line ends. Write \\r\\n in old_str and new_str, or edit a single line.")
    if count == 0:
        raise EditError(
            f"old_str does not occur in {call.path}, so nothing was changed. View the file and copy the text exactly, "
            "with its indentation and without line numbers."
        )
    if count > 1:
        raise EditError(
            f"old_str occurs {count} times in {call.path}, at lines {_places(text, old)}, so nothing was changed. "
            "Add lines around it until it occurs once."
        )
    return text.index(old), old, new


def _places(text: str, old: str) -> str:
    pieces = text.split(old)[:-1]
    lines, line = [], 1
    for piece in pieces:
        line += piece.count("\n")
        lines.append(str(line))
        line += old.count("\n")
    return ", ".join(lines[:_LINES_NAMED]) + (", ..." if len(lines) > _LINES_NAMED else "")


def _insertion(call: EditorCall, text: str) -> tuple[int, str, str]:
    """Where the lines of `new_str` go, with the file's own line ends."""
    lines, after, added = _lines(text), call.insert_line or 0, call.new_str or ""
    if not 0 <= after <= len(lines):
        raise EditError(f"insert_line is {after}, but {call.path} has {len(lines)} lines. Give 0 to {len(lines)}.")
    end = "\r\n" if "\r\n" in text and text.count("\n") == text.count("\r\n") else "\n"
    added = added.replace("\r\n", "\n").removesuffix("\n").replace("\n", end) + end
    start = sum(len(line) + 1 for line in lines[:after])
    if start > len(text):  # the last line has no end yet
        return len(text), "", end + added.removesuffix(end)
    return start, "", added


def _read(sandbox: Sandbox, path: str, advice: str) -> str:
    content = read_bytes(sandbox, path)
    if content is None:
        raise EditError(f"{path} does not exist. {advice}")
    return decode(content)


def _lines(text: str) -> list[str]:
    """The lines without their ends (a CR stays): as many as a reader would count."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _number(lines: list[str], first: int, last: int) -> str:
    numbered = (f"{number:>6}\t{lines[number - 1]}" for number in range(first, last + 1))
    return show("\n".join(numbered))
