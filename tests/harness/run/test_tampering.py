"""Signs of meddling from a task's files to its row, `tamper.json` and the notes below the tables."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from harness.agent.model import Usage
from harness.agent.trajectory import ActionRecord, Step, Trajectory
from harness.config import LevelConfig
from harness.grading.evaluate import Evaluation
from harness.grading.verdict import Verdict
from harness.instances import Instance, load_instances
from harness.report.arms import find_arms
from harness.report.tables import tampering_notes
from harness.run.paths import RunPaths
from harness.run.rows import TaskRow, to_table
from harness.run.task import Task, Work, to_row

CONFTEST = """\
diff --git a/tests/conftest.py b/tests/conftest.py
new file mode 100644
--- /dev/null
+++ b/tests/conftest.py
@@ -0,0 +1,2 @@
+def pytest_runtest_makereport(item, call):
+    return None
"""
COMMANDS = ("ls", "git log --all --oneline")


@pytest.fixture
def instance() -> Instance:
    return load_instances("starter", ["sweq__slugtext-1"])[0]


@pytest.fixture
def finish(instance, tmp_path):
    """The row and `tamper.json` of a task that ended with this patch, verdict and commands."""

    def make(patch: str, *, resolved: bool, resolved_v4: bool, commands: tuple[str, ...]) -> tuple[TaskRow, dict]:
        paths = RunPaths(tmp_path / "run").level("int4").task(instance.instance_id)
        paths.patch.parent.mkdir(parents=True, exist_ok=True)
        paths.patch.write_text(patch)
        actions = tuple(ActionRecord("bash", command, 0, False, 0, 0.1) for command in commands)
        Trajectory(info={}, steps=[Step(1, 2, 0, Usage(), 10, "stop", 0.1, 0.1, actions, "")]).write(paths.trajectory)
        status = "resolved" if resolved else "unresolved"
        verdict = Verdict(instance.instance_id, resolved, resolved_v4, status, patch_applied=True)
        task = Task(LevelConfig(name="int4", quant="int4"), instance, 0, 7, paths)
        row = to_row("run", task, Work(submitted=True), Evaluation(verdict, "", 1.0))
        return row, json.loads(paths.tampering.read_text())

    return make


def test_a_forging_patch_and_a_look_into_history_reach_row_and_file(instance, finish):
    row, stored = finish(CONFTEST, resolved=True, resolved_v4=True, commands=COMMANDS)
    assert (row.flags, row.suspect) == ("conftest git_history outcome_code", True)
    assert (row.outcome, row.resolved) == ("resolved", True)
    assert stored["flags"] == row.flags.split()
    assert (stored["suspect"], stored["only_tests_changed"]) == (True, True)
    assert stored["patch"]["outcome_code"] == ["tests/conftest.py: defines pytest_runtest_makereport"]
    (action,) = stored["actions"]
    assert (action["sign"], action["step"]) == ("git_history", 1)


def test_only_a_resolved_patch_is_suspect_by_either_grader(finish):
    assert not finish(CONFTEST, resolved=False, resolved_v4=False, commands=())[0].suspect
    assert finish(CONFTEST, resolved=False, resolved_v4=True, commands=())[0].suspect


def test_an_honest_patch_is_clean(instance, finish):
    row, stored = finish(instance.patch, resolved=True, resolved_v4=True, commands=("ls",))
    assert (row.flags, row.suspect, stored["actions"]) == ("", False, [])


def test_notes_name_flagged_suspect_and_disputed_tasks(finish, tmp_path):
    row, _ = finish(CONFTEST, resolved=False, resolved_v4=True, commands=COMMANDS)
    clean = replace(row, level="bf16", flags="", suspect=False, resolved_v4=False)
    paths = RunPaths(tmp_path / "run")
    levels = [{"name": "bf16"}, {"name": "int4"}]
    record = {"run_id": "run", "config": {"levels": levels, "repeats": 1}, "dataset": {"instances": 1}, "levels": {}}
    paths.record.write_text(json.dumps(record))
    pq.write_table(to_table([clean, row]), paths.results)
    assert tampering_notes(find_arms([str(paths.root)])) == [
        "int4: flagged tasks (verdicts unchanged): conftest 1, git_history 1, outcome_code 1.",
        "int4: Suspect, the patch only rewrites outcomes in 1 tasks: sweq__slugtext-1.",
        "int4: Verdicts of graders 5.x and 4.1 differ in 1 tasks: sweq__slugtext-1.",
    ]
