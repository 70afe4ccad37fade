"""Answers become actions, actions become observations, mistakes become advice."""

import json
import os
import re

import pytest
from agent_doubles import FolderSandbox, call, say

from harness.agent.profiles import FormatError, TextProfile, ToolsProfile, choose_profile, prompts_hash
from harness.agent.prompts import Prompts, load_prompts
from harness.agent.tools import Bash, Edit, EditError, Misuse, Submit, edit, perform, truncate
from harness.config import AgentConfig
from harness.errors import UserError
from harness.sandbox.base import ExecResult

CONTENT = "def f():\n    return 1\n\n\ndef g():\n    return 1\n"


@pytest.fixture
def box(tmp_path):
    return FolderSandbox(tmp_path / "box", {"m.py": CONTENT.encode(), "odd.py": b"# caf\xe9\nx = 1\r\ny = 2\r\n"})


def act(box, action, **settings):
    config = AgentConfig(profile="text", **settings)
    return perform(action, box, config, load_prompts("text"), timeout=config.command_timeout)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("Look.\n```bash\nls -l\n```\nThen more.", Bash("ls -l")),
        ("```bash\r\nls\r\n```", Bash("ls")),
        ("```bash\ncat <<'E' > f\n  x\nE\n```", Bash("cat <<'E' > f\n  x\nE")),
        ("```python\nx\n```\n```bash\nls\n```", Bash("ls")),
        ("```bash\nsubmit\n```", Submit()),
    ],
)
def test_text_answers(text, action):
    assert TextProfile().parse(say(text)) == [action]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no bash block"),
        ("```bash\nls", "no bash block"),
        ("```\nls\n```", "no bash block"),
        ("```bash\nls\n```\n```bash\npwd\n```", "2 bash blocks"),
        ("```bash\n\n```", "empty"),
        ("```bash\nls \0\n```", "NUL"),
    ],
)
def test_text_format_errors(text, problem):
    with pytest.raises(FormatError, match=problem):
        TextProfile().parse(say(text))


def test_tool_answers():
    values = {"path": "a", "old": "", "new": "x"}
    reply = call(("bash", {"command": "ls"}), ("edit", values), ("submit", {"note": "done"}))
    assert ToolsProfile().parse(reply) == [Bash("ls", "id0"), Edit("a", "", "x", "id1"), Submit("id2")]
    with pytest.raises(FormatError, match="no tool call"):
        ToolsProfile().parse(say("I looked at it."))


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("view", {}, "no tool 'view'; there are bash, edit and submit"),
        ("bash", '{"command": "ls', "no JSON object: Unterminated string"),
        ("bash", '["ls"]', "they are a list"),
        ("bash", {}, "needs the argument 'command'"),
        ("bash", {"command": 1}, "must be a string, not int"),
        ("bash", {"command": " "}, "is empty"),
        ("bash", {"command": "a\0"}, "NUL"),
        ("bash", '{"command": "\\ud800"}', "surrogate"),
        ("edit", {"path": "a", "old": "b"}, "needs the argument 'new'; it takes path, old, new"),
        ("edit", {"path": "a", "old": "b", "new": "c", "all": "d"}, "no argument 'all'"),
        ("bash", "[" * 100_000, "nested too deeply|JSON object"),
    ],
)
def test_malformed_calls_are_explained_and_kept_parseable(name, arguments, problem):
    profile, reply = ToolsProfile(), call((name, arguments))
    (action,) = profile.parse(reply)
    assert isinstance(action, Misuse)
    assert re.search(problem, action.problem)
    (kept,) = profile.history(reply)["tool_calls"]
    assert isinstance(json.loads(kept["function"]["arguments"]), dict)
    assert kept["id"] == action.call_id == "id0"


def test_well_formed_calls_stay_byte_for_byte_in_the_history():
    reply = call(("bash", '{"command":   "ls"}'))
    assert ToolsProfile().history(reply) is reply.raw_message


@pytest.mark.parametrize("arguments", ['{"command": "rm -r build', '{"command": "rm -r build"}'])
def test_a_cut_call_is_said_to_be_cut_and_does_not_run(arguments):
    before, last = ToolsProfile().parse(
        call(("bash", '{"command": "ls"}'), ("bash", arguments), finish_reason="length")
    )
    assert before == Bash("ls", "id0")
    assert isinstance(last, Misuse)
    assert last.problem.startswith("your answer was cut off at 4096 tokens")


def test_command_observation(box):
    seen = act(box, Bash("echo out; echo err >&2; exit 3"))
    assert seen.text == "exit code: 3\nout\nerr"
    assert seen.exit_code == 3
    assert act(box, Bash("true")).text == "exit code: 0\n(no output)"


def test_timeout_observation_keeps_the_partial_output(box):
    seen = act(box, Bash("echo partial; sleep 20"), command_timeout=0.5)
    assert seen.timed_out
    assert seen.text == "(stopped after 0.5 seconds)\npartial"


def test_long_output_keeps_head_and_tail(box):
    seen = act(box, Bash("seq 100000"), observation_limit=400)
    numbers = "".join(f"{n}\n" for n in range(1, 100_001))
    body = seen.text.removeprefix("exit code: 0\n")
    assert body.startswith(numbers[:200])
    assert body.endswith(numbers.rstrip("\n")[-199:])
    assert f"[... {len(numbers) - 400} characters left out" in body
    assert seen.dropped == len(numbers) - 400


@pytest.mark.parametrize(("size", "limit"), [(10, 10), (11, 10), (1000, 201)])
def test_truncation_counts_what_it_drops(size, limit):
    output = "".join(chr(ord("a") + n % 26) for n in range(size))
    shown, dropped = truncate(ExecResult(0, output, False, 0, 0.0), limit)
    assert dropped == max(0, size - limit)
    assert (shown == output) == (dropped == 0)
    assert truncate(ExecResult(0, output, False, 5, 0.0), limit)[1] == dropped + 5


def test_edit_replaces_one_place_and_nothing_else(box):
    old = "def g():\n    return 1"
    assert edit(box, Edit("m.py", old, "def g():\n    return 2"), timeout=9) == "edited m.py at line 5"
    assert box.read_file("/testbed/m.py").decode() == CONTENT.replace(old, "def g():\n    return 2")


def test_edit_keeps_foreign_bytes_permissions_and_links(box):
    path = box.testbed / "odd.py"
    path.chmod(0o755)
    (box.testbed / "link.py").symlink_to("odd.py")
    edit(box, Edit("/testbed/link.py", "x = 1", "x = 'é'"), timeout=9)
    assert path.read_bytes() == b"# caf\xe9\nx = '\xc3\xa9'\r\ny = 2\r\n"
    assert path.stat().st_mode & 0o777 == 0o755
    assert (box.testbed / "link.py").is_symlink()


def test_edit_creates_files_with_their_folders(box):
    assert edit(box, Edit("new dir/x.py", "", "x\n"), timeout=9) == "created new dir/x.py"
    assert box.read_file("/testbed/new dir/x.py") == b"x\n"
    assert os.listdir(box.temporary) == []


@pytest.mark.parametrize(
    ("action", "advice"),
    [
        (Edit("m.py", "return 1", "return 2"), "occurs 2 times in m.py. Add lines around it"),
        (Edit("m.py", "return 3", "x"), "does not occur in m.py. Read the file again"),
        (Edit("m.py", "return 1", "return 1"), "are the same"),
        (Edit("m.py", "", "x"), "exists already"),
        (Edit("none.py", "a", "b"), "does not exist. To create it"),
        (Edit(".", "a", "b"), "is a folder"),
        (Edit("odd.py", "x = 1\ny = 2", "z"), "CRLF"),
        (Edit("m.py/below", "", "b"), "cannot be (read|written)"),
        (Edit("/proc/self/nothing", "", "b"), "cannot be written"),
    ],
)
def test_edit_says_how_to_mend_a_wrong_edit(box, action, advice):
    before = box.read_file("/testbed/m.py")
    with pytest.raises(EditError, match=advice):
        edit(box, action, timeout=9)
    assert box.read_file("/testbed/m.py") == before
    assert act(box, action).text.startswith("error: ")


def test_prompts_hash_tells_profiles_and_wording_apart():
    assert prompts_hash("text") == prompts_hash("text")
    assert len({prompts_hash("text"), prompts_hash("tools")}) == 2
    assert Prompts("p", {"a": "x"}).digest() != Prompts("p", {"a": "y"}).digest()


def test_text_prompt_is_short():
    prompts = choose_profile("text").prompts
    task = prompts.fill("task", issue="", step_limit=9)
    example = sum(len(turn["content"]) for turn in prompts.demonstration)
    assert len(prompts.fill("system", testbed="/testbed")) + example + len(task) < 1_000


def test_prompt_mistakes_name_file_and_key():
    with pytest.raises(
        UserError, match=r"prompts.yaml: no profile 'chat'; there are editor, external, mini, text, tools"
    ):
        load_prompts("chat")
    with pytest.raises(UserError, match=r"prompts.yaml: profile p has no template 'b'"):
        Prompts("p", {}).fill("b")
    with pytest.raises(UserError, match=r"prompts.yaml: p.a: 'x'; it may use \$y"):
        Prompts("p", {"a": "$x"}).fill("a", y=1)
