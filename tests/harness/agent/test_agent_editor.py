"""The editor of the `editor` profile: what it does to files, and what it says."""

import re

import pytest
from agent_doubles import FolderSandbox, call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.agent.editor import EditorCall, use_editor
from harness.agent.profiles import ToolsProfile
from harness.agent.sandbox_files import EditError
from harness.agent.tools import Misuse

LINES = [f"line {number}" for number in range(1, 13)]
FILES = {
    "m.py": "\n".join(LINES).encode() + b"\n",
    "twice.py": b"x = 1\ny = 2\nx = 1\n",
    "open.txt": b"no end",
    "dos.py": b"# caf\xe9\r\nx = 1\r\n",
    "empty": b"",
    "pkg/sub/deep/far.py": b"",
    "pkg/.hidden": b"",
}


@pytest.fixture
def box(tmp_path):
    return FolderSandbox(tmp_path / "box", FILES)


def use(box, command, path="m.py", limit=10_000, **arguments):
    text, _ = use_editor(box, EditorCall(command, f"/testbed/{path}", **arguments), limit=limit, timeout=9)
    return text.replace(str(box.testbed), "/testbed")


def test_view_numbers_lines(box):
    assert use(box, "view", view_range=[2, 3]) == "/testbed/m.py, lines 2 to 3 of 12:\n     2\tline 2\n     3\tline 3"
    assert use(box, "view").count("\n") == 12
    assert use(box, "view", view_range=[12, -1]).endswith("\n    12\tline 12")
    assert use(box, "view", view_range=[11, 99]).splitlines()[0] == "/testbed/m.py, lines 11 to 12 of 12:"
    assert use(box, "view", "empty") == "/testbed/empty is empty."
    assert "caf\ufffd" in use(box, "view", "dos.py")
    assert "characters left out" in use(box, "view", limit=50)


def test_view_lists_a_folder_two_levels_deep(box):
    assert use(box, "view", "pkg").splitlines()[1:] == ["sub/", "sub/deep/"]


def test_changes_show_what_is_around_them(box):
    said = use(box, "str_replace", old_str="line 6\n", new_str="six\nand a half\n")
    assert said.splitlines()[0] == "edited /testbed/m.py. Around the change it now reads:"
    assert [line.split("\t")[0].strip() for line in said.splitlines()[1:]] == [str(n) for n in range(2, 12)]
    assert "     7\tand a half" in said
    assert use(box, "insert", insert_line=0, new_str="top").splitlines()[1] == "     1\ttop"
    assert use(box, "create", "new/file.py", file_text="x\n") == "created /testbed/new/file.py"
    assert box.read_file("/testbed/new/file.py") == b"x\n"


@pytest.mark.parametrize(
    ("path", "arguments", "content"),
    [
        ("twice.py", {"insert_line": 1, "new_str": "new"}, b"x = 1\nnew\ny = 2\nx = 1\n"),
        ("twice.py", {"insert_line": 3, "new_str": "new\n"}, b"x = 1\ny = 2\nx = 1\nnew\n"),
        ("open.txt", {"insert_line": 1, "new_str": "more"}, b"no end\nmore"),
        ("empty", {"insert_line": 0, "new_str": "first\n"}, b"first\n"),
        ("dos.py", {"insert_line": 1, "new_str": "a\nb"}, b"# caf\xe9\r\na\r\nb\r\nx = 1\r\n"),
        ("twice.py", {"old_str": "y = 2\n"}, b"x = 1\nx = 1\n"),
    ],
)
def test_bytes_after_a_change(box, path, arguments, content):
    use(box, "str_replace" if "old_str" in arguments else "insert", path, **arguments)
    assert box.read_file(f"/testbed/{path}") == content


@pytest.mark.parametrize(
    ("command", "path", "arguments", "message"),
    [
        ("view", "none.py", {}, "/testbed/none.py does not exist. Look for it"),
        ("view", "m.py", {"view_range": [1]}, "view_range has 1 numbers"),
        ("view", "m.py", {"view_range": [13, -1]}, "starts at line 13, but /testbed/m.py has lines 1 to 12."),
        ("view", "m.py", {"view_range": [5, 4]}, "ends at line 4, before it starts"),
        ("view", "pkg", {"view_range": [1, 2]}, "/testbed/pkg is a folder, and view_range is for files"),
        ("create", "m.py", {"file_text": "x"}, "/testbed/m.py exists already. Change it with str_replace"),
        ("create", "empty", {"file_text": "x"}, "/testbed/empty exists already"),
        ("create", "x.py", {}, "create needs the argument 'file_text'."),
        ("str_replace", "m.py", {}, "str_replace needs the argument 'old_str'."),
        ("str_replace", "m.py", {"old_str": ""}, "old_str is empty"),
        ("str_replace", "m.py", {"old_str": "q", "new_str": "q"}, "are the same"),
        ("str_replace", "m.py", {"old_str": "line 99"}, "does not occur in /testbed/m.py, so nothing was changed"),
        ("str_replace", "twice.py", {"old_str": "x = 1\n"}, "occurs 2 times in /testbed/twice.py, at lines 1, 3,"),
        ("str_replace", "dos.py", {"old_str": "\nx = 1\n"}, "has CRLF line ends"),
        ("str_replace", "pkg", {"old_str": "x"}, "is a folder. Give the path of a file."),
        ("str_replace", "none.py", {"old_str": "x"}, "/testbed/none.py does not exist. Make it with create."),
        ("insert", "m.py", {"new_str": "x"}, "insert needs the argument 'insert_line'."),
        ("insert", "m.py", {"insert_line": 13, "new_str": "x"}, "insert_line is 13, but /testbed/m.py has 12 lines."),
    ],
)  # fmt: skip
def test_mistakes_are_explained_and_change_nothing(box, command, path, arguments, message):
    with pytest.raises(EditError, match=re.escape(message)):
        use(box, command, path, **arguments)
    assert all(box.read_file(f"/testbed/{name}") == content for name, content in FILES.items())


def test_relative_paths_are_corrected(box):
    with pytest.raises(EditError, match=r"m\.py is no absolute path\. Did you mean /testbed/m\.py\?"):
        use_editor(box, EditorCall("view", "m.py"), limit=100, timeout=9)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a", "b", "", "é"]), max_size=6), st.data())
def test_insert_equals_inserting_into_a_list(box, lines, data):
    where = data.draw(st.integers(0, len(lines)))
    box.write_file("/testbed/any", "".join(f"{line}\n" for line in lines).encode())
    use(box, "insert", "any", insert_line=where, new_str="new\nlines\n")
    wanted = [*lines[:where], "new", "lines", *lines[where:]]
    assert box.read_file("/testbed/any").decode() == "".join(f"{line}\n" for line in wanted)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"command": "view", "path": "/a", "view_range": "[1, 5]"}, {"view_range": [1, 5]}),
        ({"command": "view", "path": "/a", "view_range": None, "old_str": None}, {"view_range": None}),
        ({"command": "insert", "path": "/a", "insert_line": "7", "new_str": "x"}, {"insert_line": 7}),
        ({"command": "insert", "path": "/a", "insert_line": "seven"}, "'insert_line' of str_replace_editor must be an"),
        ({"command": "undo", "path": "/a"}, "must be one of view, create, str_replace, insert, not 'undo'"),
        ({"command": "view", "path": "/a", "view_range": [1, "x"]}, "must be an array of integers"),
        ({"command": "view", "path": "/a", "view_range": 3}, "must be an array of integers, not int"),
        ({"command": "view", "file": "/a"}, "needs the argument 'path'"),
    ],
)
def test_arguments_are_taken_as_meant_or_refused(arguments, wanted):
    (action,) = ToolsProfile("editor").parse(call(("str_replace_editor", arguments)))
    if isinstance(wanted, str):
        assert isinstance(action, Misuse)
        assert wanted in action.problem
    else:
        assert {name: getattr(action, name) for name in wanted} == wanted
