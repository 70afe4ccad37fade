"""Every stored answer of every task earns what `answers.yaml` says; prose and comments never raise a score."""

import re

import pytest
import yaml

from harness.errors import UserError
from harness.rubrics.examine import check_sandbox, examine
from harness.rubrics.task import load_tasks
from harness.rubrics.toolchain import Toolchain, find_toolchain

pytestmark = [pytest.mark.node, pytest.mark.namespace, pytest.mark.slow, pytest.mark.timeout(600)]
TASKS = {task.name: task for task in load_tasks()}
STORED = {
    (name, answer): wanted
    for name, task in TASKS.items()
    for answer, wanted in yaml.safe_load((task.folder / "answers" / "answers.yaml").read_text()).items()
}
BRAG = "The careful reader will note that this is correct, complete, well tested and a pleasure to maintain."
PADDED = {
    "benchmark-viz": ("oracle", "bad-crowded"),
    "clean-markdown": ("oracle", "bad-one-line"),
    "folder-watcher": ("oracle", "bad-diff"),
    "nextjs-todo": ("oracle", "bad-iso"),
    "ts-narrowing": ("oracle", "bad-in"),
}


@pytest.fixture(scope="module")
def tools() -> Toolchain:
    try:
        found = find_toolchain()
        check_sandbox()
    except UserError as error:
        pytest.skip(str(error))
    return found


def read(task: str, answer: str) -> str:
    return (TASKS[task].folder / "answers" / f"{answer}.md").read_text()


@pytest.mark.parametrize(("task", "answer"), STORED, ids=[f"{task}-{answer}" for task, answer in STORED])
def test_stored_answer(tools: Toolchain, task: str, answer: str) -> None:
    wanted = STORED[task, answer]
    got = examine(TASKS[task], read(task, answer), tools)
    assert got.score.reason == ""
    assert got.score.compat == wanted["compat"], {name: fact for name, fact in got.facts.items() if not fact.value}
    assert got.score.hidden == pytest.approx(wanted["hidden"], abs=0.005)
    drawn = task == "benchmark-viz" and answer != "bad-endless"
    assert set(got.pictures) == ({"1280.png", "390.png"} if drawn else set())


def test_every_task_has_known_bad_answers_below_its_oracle() -> None:
    for task in TASKS:
        scores = {answer: wanted["compat"] for (name, answer), wanted in STORED.items() if name == task}
        bad = [score for answer, score in scores.items() if answer.startswith("bad-")]
        assert len(bad) >= 3
        assert max(bad) < scores["oracle"]
        assert min(bad) < scores["oracle"] - 1


def pad(text: str) -> str:
    """`text` with prose around it, and four comments at the head of every block."""
    marked = re.sub(r"(?m)^(```(?:[jt]sx?|typescript|diff)\n)", r"\1" + f"// {BRAG}\n" * 4, text)
    commented = marked.replace("```html\n", "```html\n" + f"<!-- {BRAG} -->\n" * 4)
    return f"Here is my considered solution, which I have tested.\n\n{commented}\nI hope that this helps!\n"


@pytest.mark.parametrize(("task", "answer"), [(task, answer) for task in PADDED for answer in PADDED[task]])
def test_prose_and_comments_never_raise_a_score(tools: Toolchain, task: str, answer: str) -> None:
    padded = pad(read(task, answer))
    assert padded.count(BRAG) >= 4
    score = examine(TASKS[task], padded, tools).score
    assert score.compat is not None
    assert score.compat <= STORED[task, answer]["compat"]


def test_broken_checks_are_no_low_score(tools: Toolchain, tmp_path) -> None:
    broken = tmp_path / "tools"
    (broken / "node_modules").mkdir(parents=True)
    got = examine(TASKS["ts-narrowing"], read("ts-narrowing", "oracle"), Toolchain(broken, tools.chromium))
    assert got.score.status == "infra"
    assert got.score.compat is None
    assert "check.mjs ended with status 1" in got.score.reason


def test_an_answer_that_never_ends_is_wrong_and_not_infra(tools: Toolchain) -> None:
    forever = "```ts\nexport function cleanArticle(source: string): string {\n  for (;;) source += '';\n}\n```"
    score = examine(TASKS["clean-markdown"], forever, tools).score
    assert (score.status, score.compat) == ("scored", 1.0)
