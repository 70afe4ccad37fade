"""Every starter instance through the whole grader, in namespace sandboxes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.grading.evaluate import evaluate
from harness.instances import load_instances
from harness.sandbox.namespace import NamespaceFactory, probe

pytestmark = pytest.mark.namespace

INSTANCES = load_instances("starter")
TIMEOUT = 120.0
COMMENT_PATCH = """\
diff --git a/pyproject.toml b/pyproject.toml
--- a/pyproject.toml
+++ b/pyproject.toml
@@ -1,2 +1,3 @@
+# A comment repairs nothing.
 [project]
 name = "{name}"
"""


@pytest.fixture(scope="module")
def factory():
    if reason := probe():
        pytest.skip(reason)
    return NamespaceFactory()


def grade_all(patches, factory):
    """Evaluation per instance id; two sandboxes at a time."""

    def grade(instance, patch):
        return instance.instance_id, evaluate(instance, patch, factory, timeout=TIMEOUT)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(pool.map(grade, INSTANCES, patches))


def test_gold_resolves_all(factory):
    graded = grade_all([instance.patch for instance in INSTANCES], factory)
    unresolved = {name: evaluation.log for name, evaluation in graded.items() if not evaluation.verdict.resolved}
    assert unresolved == {}
    assert len(graded) == 12


def test_comment_resolves_none(factory):
    """Every FAIL_TO_PASS test fails and every PASS_TO_PASS test passes in a sandbox of the untouched code."""
    patches = [COMMENT_PATCH.format(name=instance.repo.split("/")[1]) for instance in INSTANCES]
    graded = grade_all(patches, factory)
    for instance in INSTANCES:
        verdict = graded[instance.instance_id].verdict
        assert not verdict.resolved
        assert verdict.tests_status["FAIL_TO_PASS"]["success"] == []
        assert sorted(verdict.tests_status["PASS_TO_PASS"]["success"]) == sorted(instance.pass_to_pass)


def test_empty_patch_resolves_none(factory):
    graded = grade_all(["" for _ in INSTANCES], factory)
    assert not any(evaluation.verdict.resolved for evaluation in graded.values())
