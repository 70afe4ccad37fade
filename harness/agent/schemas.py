"""The tools of each profile, as the model is told of them."""

from typing import Any

from harness.sandbox.base import TESTBED

Schema = dict[str, Any]
"""A function's name, description and parameters, in the form of OpenAI's `tools`."""

EDITOR = "str_replace_editor"
"""The name under which models have met this kind of editor before."""


def _describe(
    name: str, description: str, properties: dict[str, dict[str, Any]], required: list[str] | None = None
) -> Schema:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _text(description: str) -> dict[str, str]:
    return {"type": "string", "description": description}


BASH = _describe(
    "bash",
    f"Run a command in a fresh bash in {TESTBED}; gives its exit code, and stdout and stderr together.",
    {"command": _text("The command, or several lines of them.")},
)
_EDIT = _describe(
    "edit",
    "Replace one piece of text in a file, or create a file.",
    {
        "path": _text(f"The file, absolute or relative to {TESTBED}."),
        "old": _text(
            "The text to replace, exactly as it stands in the file, indentation included; it must occur "
            "once. Empty to create a file."
        ),
        "new": _text("The text to put in its place, or the whole content of the new file."),
    },
)
_SUBMIT = _describe("submit", "Hand in the work as it lies in the repository. Nothing can be done afterwards.", {})
_EDITOR = _describe(
    EDITOR,
    "Look at files and change them. view: a file with line numbers, or a folder two levels deep; create: a new file; "
    "str_replace: put new_str in the place of the one old_str; insert: put new_str after line insert_line.",
    {
        "command": {
            "type": "string",
            "enum": ["view", "create", "str_replace", "insert"],
            "description": "What to do.",
        },
        "path": _text(f"The file or folder, as an absolute path such as {TESTBED}/setup.py."),
        "file_text": _text("create: the content of the new file."),
        "old_str": _text(
            "str_replace: the text to replace, exactly as it stands in the file, with its indentation and without line "
            "numbers; it must occur once."
        ),
        "new_str": _text("str_replace: the text in its place, nothing to delete it. insert: the lines to insert."),
        "insert_line": {"type": "integer", "description": "insert: the line to insert after; 0 for the very top."},
        "view_range": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "view: first and last line to show, counted from 1; -1 as the last is the end of the file.",
        },
    },
    ["command", "path"],
)
_REVIEWED_SUBMIT = _describe(
    "submit",
    "Hand in the work as it lies in the repository. The first call shows your changes for review; the second is final.",
    {},
)

TOOLS: tuple[Schema, ...] = (BASH, _EDIT, _SUBMIT)
MINI: tuple[Schema, ...] = (BASH,)
WITH_EDITOR: tuple[Schema, ...] = (BASH, _EDITOR, _REVIEWED_SUBMIT)
