"""Patches in a folder that plays the sandbox: applied as the official grader does, tested, judged."""

import subprocess
from dataclasses import replace

import pytest
from grading_doubles import FolderFactory, FolderSandbox

from harness.errors import SandboxError, UserError
from harness.grading.evaluate import evaluate
from harness.grading.patch import apply_patch, normalise, touched_paths
from harness.grading.verdict import judge

# Context that `git apply` refuses and `patch --fuzz` takes.
FUZZY = """\
--- a/tiny.py
+++ b/tiny.py
@@ -1,3 +1,3 @@
 def answer():
-    return 41
+    return 42
 # a line that is not there
"""
REJECTED_IN_PART = """\
--- a/tiny.py
+++ b/tiny.py
@@ -1,2 +1,2 @@
 def answer():
-    return 41
+    return 42
--- a/test_tiny.py
+++ b/test_tiny.py
@@ -1,3 +1,3 @@
-nothing like it
+something else
 is in
 the file
"""


@pytest.fixture
def factory(tmp_path):
    return FolderFactory(tmp_path / "sandboxes")


def test_gold_resolves(tiny, factory):
    evaluation = evaluate(tiny, tiny.patch, factory)
    assert evaluation.verdict.status == "resolved"
    assert evaluation.verdict.tests_status["FAIL_TO_PASS"]["success"] == ["test_tiny.py::test_value"]
    assert ">>>>> Test Exit Code: 0" in evaluation.log
    assert judge(tiny, evaluation.log, tiny.patch) == evaluation.verdict


def test_harmless_patch_does_not(tiny, factory):
    evaluation = evaluate(tiny, "--- a/tiny.py\n+++ b/tiny.py\n@@ -1 +1,2 @@\n+# comment\n def answer():\n", factory)
    assert evaluation.verdict.status == "unresolved"
    assert evaluation.verdict.resolved_v4 is False
    assert ">>>>> Test Exit Code: 1" in evaluation.log


@pytest.mark.parametrize("patch", ["", None])
def test_empty_patch_needs_no_sandbox(tiny, factory, patch):
    verdict = evaluate(tiny, patch, factory).verdict
    assert (verdict.status, verdict.resolved, verdict.patch_exists) == ("empty_patch", False, patch is not None)
    assert factory.made == []


@pytest.mark.parametrize("patch", ["no patch at all", REJECTED_IN_PART])
def test_patch_that_does_not_apply(tiny, factory, patch):
    evaluation = evaluate(tiny, patch, factory)
    assert evaluation.verdict.status == "patch_failed"
    assert evaluation.log.startswith(">>>>> Patch Apply Failed:\n")
    assert judge(tiny, evaluation.log, patch) == evaluation.verdict
    assert [command.rpartition(" ")[0] for command in factory.made[0].commands if "/tmp" in command] == [
        "git apply --verbose",
        "git apply --verbose --3way",
        "git apply --verbose --reject",
        "patch --batch --forward --fuzz=5 -p1 -i",
        "git apply --check --reverse",
    ]


def test_fuzzy_patch_applies_on_a_reset_tree(tiny, factory):
    assert evaluate(tiny, FUZZY, factory).verdict.status == "resolved"


def test_patch_without_last_newline(tiny, factory):
    assert evaluate(tiny, tiny.patch.rstrip("\n"), factory).verdict.status == "resolved"
    assert len([command for command in factory.made[0].commands if "apply" in command]) == 1


def test_timeout_is_no_verdict_even_when_the_log_is_complete(tiny, factory):
    slow = replace(tiny, eval_script=tiny.eval_script + "sleep 30\n")
    evaluation = evaluate(slow, tiny.patch, factory, timeout=4)
    assert (evaluation.verdict.status, evaluation.verdict.resolved) == ("timeout", False)
    assert "Timeout error: 4 seconds exceeded." in evaluation.log
    assert evaluation.verdict.infra_failure_reason == "tests_timed_out"
    assert judge(tiny, evaluation.log, tiny.patch) == evaluation.verdict


def test_sandbox_failure_propagates(tiny, tmp_path):
    with pytest.raises(SandboxError):
        evaluate(tiny, tiny.patch, FolderFactory(tmp_path, failures=1))


def test_unknown_parser_is_found_before_any_sandbox(tiny, factory):
    with pytest.raises(UserError, match="sweq__tiny-1: unknown log_parser"):
        evaluate(replace(tiny, log_parser="parse_log_x"), tiny.patch, factory)
    assert factory.made == []


def test_bytes_outside_utf8_survive(tiny, tmp_path):
    (tiny.tree / "latin.txt").write_bytes(b"caf\xe9\n")
    patch = b"--- a/latin.txt\n+++ b/latin.txt\n@@ -1 +1 @@\n-caf\xe9\n+th\xe9\n".decode("utf-8", "surrogateescape")
    sandbox = FolderSandbox(tmp_path / "box", tiny.tree)
    assert apply_patch(sandbox, patch).applied
    assert sandbox.read_file("/testbed/latin.txt") == b"th\xe9\n"


@pytest.mark.parametrize(
    ("patch", "expected"), [(None, ""), ("", ""), ("a", "a\n"), ("a\n", "a\n"), ("a\r\n", "a\r\n")]
)
def test_normalise(patch, expected):
    assert normalise(patch) == expected


def test_touched_paths_of_a_git_diff(tmp_path):
    def run(command):
        return subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    run("git init -q && mkdir 'a b' && seq 9 >old.py && echo 1 >gone.py && echo 1 >mode.sh && echo 1 >'a b/\u00e9.py'")
    run("printf '\\0' >bytes.bin && git add -A && git -c user.name=x -c user.email=x@localhost commit -qm base")
    run("git mv old.py new.py && git rm -q gone.py && chmod +x mode.sh && echo 2 >>'a b/\u00e9.py' && echo 1 >added.py")
    run("printf '\\0\\1' >bytes.bin && printf -- '-- a/fake.py\\n' >query.sql && git add -A")
    diff = run("git diff --binary -M HEAD")
    expected = ["a b/\u00e9.py", "added.py", "bytes.bin", "gone.py", "mode.sh", "new.py", "old.py", "query.sql"]
    assert touched_paths(diff) == expected


def test_touched_paths_of_a_malformed_patch():
    assert touched_paths("--- a/x.py\n+++ b/y.py\n@@ -1,9 +1,9 @@\n-only one line\n") == ["x.py", "y.py"]
    assert touched_paths("no patch") == []
