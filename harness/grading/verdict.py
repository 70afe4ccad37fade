"""A log and a dataset row become a verdict: pure, without a sandbox.

Semantics of swebench 5.0.2's `grading.py` and `infra_failure.py` (SWE-bench, MIT); `resolved_v4` is what 4.1.0 would
have said of the same log. The two disagree on skipped tests, truncated test names, names with spaces, and logs that
contradict the test command's exit status.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.grading.logs import GraderVersion, LogError, Status, StatusMap, find_parser, parse
from harness.instances import Instance

START = ">>>>> Start Test Output"
END = ">>>>> End Test Output"
PATCH_FAILED = ">>>>> Patch Apply Failed"
TIMED_OUT = ">>>>> Tests Timed Out"
EXIT_CODE = ">>>>> Test Exit Code"
_EXIT_CODE_VARIABLE = "SWEBENCH_TEST_EXIT_CODE"
_FATAL = (PATCH_FAILED, ">>>>> Reset Failed", ">>>>> Tests Errored", TIMED_OUT)

VerdictStatus = Literal["resolved", "unresolved", "empty_patch", "patch_failed", "timeout", "ungradable"]
TestsStatus = dict[str, dict[str, list[str]]]

_PASSING = (Status.PASSED, Status.XFAIL)
_FAILING = (Status.FAILED, Status.ERROR)

# Counts above zero that JavaScript runners print: the suite ran although no single test was reported.
_SUITE_RAN = re.compile(
    "|".join(
        (
            r"Executed [1-9]\d* of \d+",
            r"TOTAL: [1-9]\d* (?:SUCCESS|FAILED)",
            r"[1-9]\d* passing",
            r"Tests:\s+[1-9]\d*",
            r"Test Suites:\s+(?:\d+ \w+, )*[1-9]\d* total",
            r"^# tests [1-9]\d*",
            r"[1-9]\d* specs?, \d+ failures?",
            r"': ok$",
        )
    ),
    re.MULTILINE,
)
_RECORDED_EXIT = re.compile(re.escape(EXIT_CODE) + r":\s*(-?\d+)")

# (reason, whether only the environment can cause it, what it looks like); the first that matches is reported.
_INFRA_SIGNS = tuple(
    (reason, environment, re.compile(sign, re.MULTILINE))
    for reason, environment, sign in (
        ("browser_launch_failed", True, r"Failed to (?:launch|connect to the bus)"),
        ("display_unavailable", True, r"cannot open display|Missing X server|unable to open X display"),
        ("out_of_memory", True, r"Cannot allocate memory|OutOfMemoryError|^Killed$"),
        ("container_unavailable", True, r"Error response from daemon|Cannot connect to the Docker daemon"),
        ("network_unreachable", True, r"Could not resolve host|Temporary failure in name resolution"),
        ("missing_module", False, r"Cannot find module|MODULE_NOT_FOUND|ModuleNotFoundError"),
        ("no_tests_collected", False, r"no tests ran|collected 0 items"),
        ("tests_timed_out", False, r"Timeout error: \d+ seconds exceeded"),
    )
)


@dataclass(frozen=True)
class InfraSign:
    """Why a run without results may not be the model's fault: advice for triage, never a change of the score."""

    reason: str
    environment: bool


@dataclass(frozen=True)
class Verdict:
    """What one log says of one patch.

    `tests_status` is the official nested dict (FAIL_TO_PASS, ... -> success/failure -> names), None when not gradable.
    `patch_applied` follows the official field: false whenever the log is not gradable, for whatever reason.
    """

    instance_id: str
    resolved: bool
    resolved_v4: bool
    status: VerdictStatus
    patch_exists: bool = True
    patch_applied: bool = False
    tests_status: TestsStatus | None = None
    infra_failure: bool = False
    infra_failure_reason: str | None = None

    def report(self) -> dict[str, dict[str, Any]]:
        """The official report.json: `{instance_id: entry}` with exactly swebench's keys."""
        entry: dict[str, Any] = {
            "patch_is_None": not self.patch_exists,
            "patch_exists": self.patch_exists,
            "patch_successfully_applied": self.patch_applied,
            "resolved": self.resolved,
            "infra_failure": self.infra_failure,
        }
        if self.infra_failure_reason is not None:
            entry["infra_failure_reason"] = self.infra_failure_reason
        if self.tests_status is not None:
            entry["tests_status"] = self.tests_status
        return {self.instance_id: entry}


def judge(instance: Instance, log: str, patch: str | None) -> Verdict:
    """The official verdict on `log`, the output of the eval script after `patch` was applied.

    A null patch is not judged; of an empty one the log is judged as the official grader does, and the status says
    `empty_patch`. Raises `UserError` when the row names an unknown parser.
    """
    find_parser(instance.log_parser, instance.instance_id)
    if patch is None:
        return Verdict(instance.instance_id, False, False, "empty_patch", patch_exists=False)
    verdict = judge_log(instance, log)
    return verdict if patch or verdict.resolved else replace(verdict, status="empty_patch")


def judge_log(instance: Instance, log: str) -> Verdict:
    """As `judge`, of a log whose patch is known to exist."""
    log = _unify_line_ends(log)
    resolved_v4 = _resolves_v4(instance, log)
    statuses = read_statuses(instance, log)
    if statuses is None:
        sign = find_infra_sign(log)
        return Verdict(
            instance.instance_id,
            resolved=False,
            resolved_v4=resolved_v4,
            status=_reason_ungraded(log),
            infra_failure=sign is not None and sign.environment,
            infra_failure_reason=sign.reason if sign else None,
        )
    tests = compare(instance, statuses)
    resolved = is_resolved(tests)
    return Verdict(
        instance.instance_id,
        resolved=resolved,
        resolved_v4=resolved_v4,
        status="resolved" if resolved else "unresolved",
        patch_applied=True,
        tests_status=tests,
    )


def _unify_line_ends(text: str) -> str:
    """As Python reads text files, and with it the official grader its logs: a carriage return ends a line too."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _resolves_v4(instance: Instance, log: str) -> bool:
    statuses = read_statuses(instance, log, version=4)
    return statuses is not None and is_resolved(compare(instance, statuses, version=4))


def _reason_ungraded(log: str) -> VerdictStatus:
    if PATCH_FAILED in log:
        return "patch_failed"
    if TIMED_OUT in log or re.search(r"Timeout error: \d+ seconds exceeded\.\s*\Z", log):
        return "timeout"
    return "ungradable"


def find_infra_sign(text: str) -> InfraSign | None:
    """The first known sign of a broken environment in `text`."""
    lines = _unify_line_ends(text)
    for reason, environment, sign in _INFRA_SIGNS:
        if sign.search(lines):
            return InfraSign(reason, environment)
    return None


def read_statuses(instance: Instance, log: str, *, version: GraderVersion = 5) -> StatusMap | None:
    """Status of every test that `log` reports, or None when the log cannot be graded."""
    if any(marker in log for marker in _FATAL) or START not in log or END not in log:
        return None
    try:
        # Some runners write past the markers (stderr and stdout in another order), so the whole log is the fallback.
        statuses = parse(instance.log_parser, log.split(START)[1].split(END)[0], version=version)
        statuses = statuses or parse(instance.log_parser, log, version=version)
    except LogError:
        return None
    if version == 5 and (_never_ran(statuses, log) or _contradicts_exit_code(statuses, log)):
        return None
    return statuses


def _never_ran(statuses: StatusMap, log: str) -> bool:
    return not statuses and _SUITE_RAN.search(log) is None


def _contradicts_exit_code(statuses: StatusMap, log: str) -> bool:
    """A patch can print lines that look like passing tests; the test command's own exit status gives it away."""
    recorded = _RECORDED_EXIT.search(log)
    if recorded is None or int(recorded[1]) == 0 or not statuses:
        return False
    return not any(status in _FAILING for status in statuses.values())


def compare(instance: Instance, statuses: StatusMap, *, version: GraderVersion = 5) -> TestsStatus:
    """The official nested dict: expected tests split into successes and failures.

    A test can be in neither list: its status is a word that grading does not know (or, in version 4, SKIPPED).
    """
    grade = _rules(instance.eval_type, version)
    return {
        "FAIL_TO_PASS": _split(instance.fail_to_pass, lambda test: grade(test, statuses, False)),
        "PASS_TO_PASS": _split(instance.pass_to_pass, lambda test: grade(test, statuses, True)),
        "FAIL_TO_FAIL": {"success": [], "failure": []},
        "PASS_TO_FAIL": {"success": [], "failure": []},
    }


def _split(tests: Iterable[str], grade: Callable[[str], bool | None]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {"success": [], "failure": []}
    for test in tests:
        outcome = grade(test)
        if outcome is not None:
            lists["success" if outcome else "failure"].append(test)
    return lists


def _rules(eval_type: str, version: GraderVersion) -> Callable[[str, StatusMap, bool], bool | None]:
    if eval_type == "fail_only":
        return lambda test, statuses, passed_before: statuses.get(test) != Status.FAILED
    return _grade_test if version == 5 else _grade_test_v4


def _grade_test(test: str, statuses: StatusMap, passed_before: bool) -> bool | None:
    """True for success, False for failure. A skip is no regression, but it does not fix anything either."""
    status = find_status(test, statuses)
    if status in _PASSING:
        return True
    if status == Status.SKIPPED:
        return passed_before
    return False if status is None or status in _FAILING else None


def _grade_test_v4(test: str, statuses: StatusMap, passed_before: bool) -> bool | None:
    status = statuses.get(test)
    if status in _PASSING:
        return True
    return False if status is None or status in _FAILING else None


def find_status(test: str, statuses: StatusMap) -> str | None:
    """Status of an expected test. 676 names in Verified are cut inside their parameters (`test_x[log(photon`).

    Such a name, and no other, also stands for all names that it begins, as long as they agree on passing.
    """
    if test in statuses:
        return statuses[test]
    if test.count("[") <= test.count("]"):
        return None
    candidates = [status for name, status in statuses.items() if name.startswith(test)]
    agree = len({status in _PASSING for status in candidates}) == 1
    return candidates[0] if agree else None


def is_resolved(tests: TestsStatus) -> bool:
    """Official RESOLVED_FULL: no expected test failed, and lists that are empty count as met."""
    return not tests["FAIL_TO_PASS"]["failure"] and not tests["PASS_TO_PASS"]["failure"]


def instrument(eval_script: str) -> str:
    """The eval script, made to print the test command's own exit status after the end marker.

    Its last command resets the test files, so the script's exit status says nothing of the tests. A script without
    the marker is returned as it is: its log is then trusted alone.
    """
    lines = eval_script.strip().split("\n")
    for number, line in enumerate(lines):
        if END in line:
            report = [f"{_EXIT_CODE_VARIABLE}=$?", line, f'echo "{EXIT_CODE}: ${_EXIT_CODE_VARIABLE}"']
            lines[number : number + 1] = report
            break
    return "\n".join(lines) + "\n"
