"""Calibration of instances on this machine, quarantine, and tests restored by our own hand; in real sandboxes."""

import json
from dataclasses import replace

import pytest
from grading_doubles import FolderFactory, make_instance

import harness.grading.validation as validation
from harness.errors import SandboxError, UserError
from harness.grading.evaluate import evaluate
from harness.grading.patch import restore_tests
from harness.grading.results import Graded
from harness.grading.runs import grade
from harness.grading.validation import read_quarantine, summarise, validate
from harness.grading.verdict import Verdict
from harness.instances import load_instances
from harness.sandbox.namespace import NamespaceFactory

SOUND = "sweq__slugtext-1"
NEW_FILE = """\
diff --git a/tests/test_new.py b/tests/test_new.py
new file mode 100644
--- /dev/null
+++ b/tests/test_new.py
@@ -0,0 +1,2 @@
+def test_new():
+    assert True
"""


def graded(resolved: bool, **tests: str) -> Graded:
    lists: dict[str, dict[str, list[str]]] = {"FAIL_TO_PASS": {"success": [], "failure": []}}
    for name, outcome in tests.items():
        lists["FAIL_TO_PASS"][outcome].append(name)
    status = "resolved" if resolved else "unresolved"
    return Graded(Verdict("a__b-1", resolved, resolved, status, tests_status=lists), None)


@pytest.mark.parametrize(
    ("gold", "unpatched", "why", "flaky"),
    [
        ([graded(True, t="success")] * 2, [graded(False, t="failure")] * 2, "", {}),
        (
            [graded(True, t="success"), graded(False, t="failure")],
            [graded(False, t="failure")] * 2,
            "gold resolves in 1 of 2 runs; 1 flaky test",
            {"gold: t": {"success": 1, "failure": 1}},
        ),
        (
            [graded(True, t="success")] * 2,
            [graded(True, t="success")] * 2,
            "resolves unpatched in 2 of 2 runs",
            {},
        ),
        (
            [graded(True, t="success"), Graded(None, None, "daemon gone")],
            [graded(False, t="failure")] * 2,
            "the sandbox failed: daemon gone; gold resolves in 1 of 2 runs",
            {},
        ),
        (
            [graded(True, t="success")] * 2,
            [graded(False, t="failure"), Graded(Verdict("a__b-1", False, False, "timeout"), None)],
            "cannot be graded unpatched in 1 of 2 runs",
            {},
        ),
    ],
)
def test_what_runs_say_of_an_instance(gold, unpatched, why, flaky) -> None:
    instance = make_instance(instance_id="a__b-1", fail_to_pass=("t",))
    arms = {"gold": gold, "unpatched": unpatched}
    runs = {("a__b-1", arm, number): one for arm, graded in arms.items() for number, one in enumerate(graded)}
    found = summarise(instance, 2, runs)
    assert (found.why, found.flaky) == (why, flaky)
    assert found.passes_unpatched == (["t"] if "resolves unpatched" in why else [])


@pytest.mark.namespace
@pytest.mark.slow
def test_validate_tells_sound_from_unsound_and_continues(tmp_path, monkeypatch) -> None:
    sound, other = (load_instances("starter", [name])[0] for name in (SOUND, "sweq__backoff-1"))
    remark = "--- /dev/null\n+++ b/REMARK.md\n@@ -0,0 +1 @@\n+nothing is repaired\n"
    broken = replace(other, patch=remark)
    monkeypatch.setattr(validation, "load_instances", lambda dataset, ids: [sound, broken])
    options = {"run_id": "v", "repeats": 1, "sandbox": "namespace", "results": tmp_path}
    path, found = validate("starter", **options)
    assert [one.is_sound for one in found] == [True, False]
    assert (found[0].gold_resolved, found[0].unpatched_resolved) == (1, 0)
    report = tmp_path / "v" / "gold" / "0" / "instances" / SOUND / "0" / "report.json"
    first = report.stat().st_mtime_ns
    monkeypatch.setattr(validation, "choose", None)  # nothing is left to run, so no sandbox is asked for
    assert validate("starter", **options)[1] == found
    assert report.stat().st_mtime_ns == first
    assert read_quarantine(path) == {broken.instance_id: "gold resolves in 0 of 1 runs"}
    assert json.loads(path.read_text())["instances"][SOUND]["why"] == ""


def test_a_file_that_is_no_validation_is_named(tmp_path) -> None:
    path = tmp_path / "validation.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="instances: not what `sweq validate` writes"):
        read_quarantine(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_quarantine(tmp_path / "none.json")


@pytest.mark.namespace
@pytest.mark.slow
def test_restored_tests_undo_what_the_official_checkout_cannot() -> None:
    """git checks out none of the paths of which one is new, and the test patch then fails on the model's own file."""
    plain = load_instances("starter", [SOUND])[0]
    checkout = f"git checkout {plain.base_commit} tests/test_slug.py"
    script = plain.eval_script.replace(checkout, f"{checkout} tests/test_new.py")
    script = script.replace("EOF_114329324912\n:", NEW_FILE + "EOF_114329324912\n:")
    instance = replace(plain, test_patch=plain.test_patch + NEW_FILE, eval_script=script)
    patch = plain.patch.rstrip("\n") + "\n" + NEW_FILE.replace("assert True", "assert 1")
    factory = NamespaceFactory()
    official = evaluate(instance, patch, factory, timeout=120)
    assert official.verdict.status == "unresolved"
    restored = evaluate(instance, patch, factory, timeout=120, restore=True)
    assert restored.verdict.status == "resolved"


def test_no_test_is_removed_where_the_base_commit_is_missing(tiny, tmp_path) -> None:
    sandbox = FolderFactory(tmp_path).create(tiny)
    with pytest.raises(SandboxError, match="no such commit"):
        restore_tests(sandbox, tiny.test_patch, "f" * 40)
    assert (sandbox.root / "testbed" / "test_tiny.py").exists()


@pytest.mark.namespace
@pytest.mark.slow
def test_grade_says_what_it_flags(tmp_path) -> None:
    """The starter's gold patch together with a conftest.py of the model's own."""
    plain = load_instances("starter", [SOUND])[0]
    conftest = NEW_FILE.replace("tests/test_new.py", "tests/conftest.py").replace("test_new", "helper")
    predictions = tmp_path / "p.jsonl"
    answer = {
        "instance_id": SOUND,
        "model_name_or_path": "m",
        "model_patch": plain.patch.rstrip("\n") + "\n" + conftest,
    }
    predictions.write_text(json.dumps(answer) + "\n")
    said: list[str] = []
    options = {"sandbox": "namespace", "results": tmp_path, "restore": True, "echo": said.append}
    assert grade("starter", str(predictions), [SOUND], "g", **options) == 0
    assert f"Flagged patches: {SOUND} (conftest)" in said
    assert any("restored by hand" in line for line in said)
    with pytest.raises(UserError, match=r"grade.json: key restore_tests: is `True`, now `False`"):
        grade("starter", str(predictions), [SOUND], "g", **{**options, "restore": False})
