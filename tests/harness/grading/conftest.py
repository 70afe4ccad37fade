"""The official grader as an oracle, and an instance that really runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grading_doubles import make_instance, to_row

from harness.instances import Instance
from harness.tree import commit_tree

GOLD = """\
--- a/tiny.py
+++ b/tiny.py
@@ -1,2 +1,2 @@
 def answer():
-    return 41
+    return 42
"""
TEST_PATCH = """\
diff --git a/test_tiny.py b/test_tiny.py
--- a/test_tiny.py
+++ b/test_tiny.py
@@ -3,3 +3,7 @@

 def test_type():
     assert isinstance(tiny.answer(), int)
+
+
+def test_value():
+    assert tiny.answer() == 42
"""


@pytest.fixture(scope="session")
def official_parsers() -> dict[str, Callable[[str, Any], dict[str, str]]]:
    """swebench 5.0.2's log parsers by name."""
    from swebench.harness.log_parsers import PARSER_REGISTRY

    return PARSER_REGISTRY


@pytest.fixture(scope="session")
def official_report() -> Callable[[Instance, str | None, Path], dict[str, Any]]:
    """swebench 5.0.2's report of an instance, a patch and a log file."""
    from swebench.harness.grading import get_eval_report
    from swebench.harness.utils import make_test_spec

    def report(instance: Instance, patch: str | None, log_file: Path) -> dict[str, Any]:
        prediction = {"instance_id": instance.instance_id, "model_name_or_path": "m", "model_patch": patch}
        return get_eval_report(make_test_spec(to_row(instance)), prediction, str(log_file), True)

    return report


@pytest.fixture
def tiny(tmp_path: Path) -> Instance:
    """One module with one wrong number, one test that passes, and a test patch that adds the failing one."""
    tree = tmp_path / "tiny"
    tree.mkdir()
    (tree / "tiny.py").write_text("def answer():\n    return 41\n")
    (tree / "test_tiny.py").write_text("import tiny\n\n\ndef test_type():\n    assert isinstance(tiny.answer(), int)\n")
    script = f"""\
#!/bin/bash
set -uxo pipefail
cd /testbed
git apply -v - <<'EOF_OF_PATCH'
{TEST_PATCH}
EOF_OF_PATCH
: '>>>>> Start Test Output'
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -rA -p no:cacheprovider test_tiny.py
: '>>>>> End Test Output'
git checkout HEAD test_tiny.py
"""
    instance = make_instance(
        patch=GOLD,
        test_patch=TEST_PATCH,
        eval_script=script,
        fail_to_pass=("test_tiny.py::test_value",),
        pass_to_pass=("test_tiny.py::test_type",),
        tree=tree,
    )
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tree.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return replace(instance, base_commit=commit_tree(copy))
