"""The starter set: rows in the official shape, patches that do what they claim, lists that are measured."""

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import unidiff
import yaml

from harness.errors import UserError
from harness.starter.build import apply_patch, copy_base, main, measure, refresh
from harness.starter.catalogue import directives, eval_script, instance_folders, load_row, load_rows

FOLDERS = instance_folders()
every_instance = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)

# The columns of SWE-bench/SWE-bench_Verified (test split, 2026), all of them strings there.
OFFICIAL_COLUMNS = {
    "repo",
    "instance_id",
    "base_commit",
    "patch",
    "test_patch",
    "problem_statement",
    "hints_text",
    "created_at",
    "version",
    "FAIL_TO_PASS",
    "PASS_TO_PASS",
    "environment_setup_commit",
    "difficulty",
    "eval_script",
    "log_parser",
    "eval_type",
    "image",
}

NOTE_PATCH = """\
diff --git a/NOTES.md b/NOTES.md
new file mode 100644
--- /dev/null
+++ b/NOTES.md
@@ -0,0 +1 @@
+Nothing is repaired.
"""
TEST_PATCH = """\
diff --git a/tests/test_nothing.py b/tests/test_nothing.py
new file mode 100644
--- /dev/null
+++ b/tests/test_nothing.py
@@ -0,0 +1,2 @@
+def test_nothing():
+    pass
"""


@pytest.fixture
def copied(tmp_path):
    """A copy of the first instance folder, free to be spoiled."""
    return Path(shutil.copytree(FOLDERS[0], tmp_path / FOLDERS[0].name))


def test_twelve_rows_in_the_official_shape():
    rows = load_rows()
    assert len(rows) == 12
    for row in rows:
        assert set(row) == OFFICIAL_COLUMNS | {"tree"}
        assert all(isinstance(row[key], str) for key in OFFICIAL_COLUMNS - {"image"})
        assert row["instance_id"].split("__")[1].rsplit("-", 1)[0] == row["repo"].split("/")[1]
        assert json.loads(row["FAIL_TO_PASS"])
        assert json.loads(row["PASS_TO_PASS"])
    assert [row["instance_id"] for row in rows] == sorted({row["instance_id"] for row in rows})


def test_difficulty_is_graded():
    counts = Counter(row["difficulty"] for row in load_rows())
    assert counts == {"<5 min fix": 4, "<15 min fix": 4, "15 min - 1 hour": 3, "1-4 hours": 1}


@every_instance
def test_recorded_lists_are_what_the_tests_say(folder):
    row = load_row(folder)
    recorded = {key: json.loads(row[key]) for key in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    assert measure(folder) == {"base_commit": row["base_commit"], **recorded}


@every_instance
def test_patches_touch_their_own_side_and_apply_in_either_order(folder, tmp_path):
    touched = {name: unidiff.PatchSet((folder / name).read_text()) for name in ("gold.patch", "test.patch")}
    assert all(file.path.startswith("tests/") for file in touched["test.patch"])
    assert not any(file.path.startswith("tests/") for file in touched["gold.patch"])
    for order in (list(touched), list(reversed(touched))):
        tree = tmp_path / order[0]
        copy_base(folder, tree)
        for name in order:
            apply_patch(folder / name, tree)


@every_instance
def test_issue_does_not_give_the_fix_away(folder):
    issue = (folder / "issue.md").read_text()
    gold = unidiff.PatchSet((folder / "gold.patch").read_text())
    lines = [line for file in gold for hunk in file for line in hunk]
    added = [line.value.strip() for line in lines if line.is_added]
    telling = [line for line in added if len(line) > 15]
    assert telling
    assert [line for line in telling if line in issue] == []


@every_instance
def test_eval_script_has_the_official_order(folder):
    row = load_row(folder)
    script = row["eval_script"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    files = " ".join(directives(row["test_patch"]))
    steps = [
        "set -uxo pipefail\n",
        "cd /testbed\n",
        "git status\n",
        "git show\n",
        f"git -c core.fileMode=false diff {row['base_commit']}\n",
        f"git checkout {row['base_commit']} {files}\n",
        f"git apply -v - <<'EOF_114329324912'\n{row['test_patch']}EOF_114329324912\n",
        ": '>>>>> Start Test Output'\n",
        f"python -m pytest -rA -p no:cacheprovider {files}\n",
        ": '>>>>> End Test Output'\n",
        f"git checkout {row['base_commit']} {files}\n",
    ]
    position = 0
    for step in steps:
        position = script.index(step, position) + len(step)
    assert position == len(script)


def test_eval_script_resets_known_files_and_removes_new_ones(tmp_path):
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    (tree / "tests" / "test_old.py").write_text("")
    names = ("tests/test_old.py", "tests/test_new.py", "tests/data.txt")
    script = eval_script("abc", "".join(f"diff --git a/{name} b/{name}\n" for name in names), tree)
    assert script.count("\ngit checkout abc tests/test_old.py\nrm -f tests/test_new.py tests/data.txt\n") == 2
    assert "no:cacheprovider tests/test_old.py tests/test_new.py\n" in script


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base", "base: missing"),
        ("issue.md", "issue.md: No such file"),
        ("gold.patch", "gold.patch: No such file"),
        ("instance.yaml", "instance.yaml: No such file"),
    ],
)
def test_missing_part_is_named(copied, name, message):
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        load_row(copied)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", None, "key 'version' is missing or not a string"),
        ("version", 1.2, "key 'version' is missing or not a string"),
        ("PASS_TO_PASS", "tests", "key 'PASS_TO_PASS' is missing or not a list of test names"),
    ],
    ids=["missing", "number", "string"],
)
def test_wrong_key_is_named(copied, key, value, message):
    path = copied / "instance.yaml"
    facts = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**facts, key: value}))
    with pytest.raises(UserError, match=f"instance.yaml: {message}"):
        load_row(copied)


def test_folder_without_instances_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no instance folders"):
        load_rows(tmp_path)


def test_refresh_finds_and_repairs_what_is_stale(copied):
    path = copied / "instance.yaml"
    fresh = path.read_text()
    facts = yaml.safe_load(fresh)
    path.write_text(yaml.safe_dump({**facts, "PASS_TO_PASS": facts["PASS_TO_PASS"][1:]}, sort_keys=False))
    stale = path.read_text()
    assert refresh(copied, check=True) == ["PASS_TO_PASS"]
    assert path.read_text() == stale
    assert refresh(copied, check=False) == ["PASS_TO_PASS"]
    assert path.read_text() == fresh


def test_patch_that_does_not_fit_is_named(copied):
    (copied / "gold.patch").write_text((copied / "gold.patch").read_text().replace("\n-", "\n-x"))
    with pytest.raises(UserError, match=r"gold\.patch: does not apply"):
        measure(copied)


def test_gold_that_repairs_nothing_is_named(copied):
    (copied / "gold.patch").write_text(NOTE_PATCH)
    with pytest.raises(UserError, match=r"gold\.patch: tests that still fail: tests/"):
        measure(copied)


def test_tests_that_show_nothing_are_named(copied):
    (copied / "test.patch").write_text(TEST_PATCH)
    with pytest.raises(UserError, match=r"test\.patch: no test fails without the gold patch"):
        measure(copied)


def test_check_of_one_instance(capsys):
    assert main(["--check", FOLDERS[0].name]) == 0
    assert capsys.readouterr().out == f"{FOLDERS[0].name}: up to date\n"
    with pytest.raises(UserError, match="unknown instance 'other'"):
        main(["other"])
