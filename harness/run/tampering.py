"""What a finished task shows of meddling with its tests: `tamper.json`, and the row's `flags` and `suspect`."""

from dataclasses import asdict

from harness.agent.trajectory import read_trajectory
from harness.grading.behaviour import Action, Finding, scan
from harness.grading.patch import touched_paths
from harness.grading.tamper import inspect_patch
from harness.grading.verdict import Verdict
from harness.instances import Instance
from harness.run.paths import TaskPaths
from harness.run.store import write_json


def find_tampering(instance: Instance, patch: str, verdict: Verdict | None, paths: TaskPaths) -> tuple[str, bool]:
    """`flags` and `suspect` of a task's row; what they rest on goes to `tamper.json`, next to the official report.

    A patch is suspect only where either grader's semantics resolved it. Reads the trajectory where there is one.
    """
    tampering = inspect_patch(instance, patch)
    resolved = verdict is not None and (verdict.resolved or verdict.resolved_v4)
    findings = _scan_trajectory(instance, paths)
    flags = sorted({*tampering.flags, *(str(finding.sign) for finding in findings)})
    suspect = tampering.is_suspect(resolved)
    write_json(
        paths.tampering,
        {
            "flags": flags,
            "suspect": suspect,
            "only_tests_changed": tampering.is_only_tests,
            "patch": dict(tampering.evidence),
            "actions": [asdict(finding) for finding in findings],
        },
    )
    return " ".join(flags), suspect


def _scan_trajectory(instance: Instance, paths: TaskPaths) -> list[Finding]:
    if not paths.trajectory.exists():
        return []
    steps = read_trajectory(paths.trajectory).steps
    actions = (Action(step.number, action.kind, action.subject) for step in steps for action in step.actions)
    return scan(actions, touched_paths(instance.test_patch))
