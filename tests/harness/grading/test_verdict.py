"""Verdicts against swebench 5.0.2's reports: stored real logs, generated logs, and each rule by itself."""

import json
import random
from pathlib import Path

import pytest
from grading_doubles import END, START, TESTS, generate_lines, make_instance, to_row

from harness.grading.logs import parse
from harness.grading.verdict import instrument, judge, judge_log

LOGS = Path(__file__).parent / "logs"
VERDICTS = [json.loads(line) for line in (LOGS / "verdicts.jsonl").read_text().splitlines()]
ROWS = {row["instance_id"]: row for row in map(json.loads, (LOGS / "rows.jsonl").read_text().splitlines())}
GENERATED = 2_000

PARSER_NAMES = ("pytest", "requests", "scikit", "django", "sympy", "seaborn", "matplotlib")
SURROUNDINGS = (
    "ModuleNotFoundError: No module named 'x'",
    "Killed",
    "Could not resolve host: example.org",
    "collected 0 items",
    "Timeout error: 1800 seconds exceeded.",
    "Executed 3 of 3",
    "12 passing",
    "Tests: 4",
    "2 specs, 0 failures",
    "Test Suites: 1 failed, 2 total",
    ">>>>> Some Tests Failed",
    ">>>>> Test Exit Code: 0",
)
FATAL = (">>>>> Patch Apply Failed", ">>>>> Reset Failed", ">>>>> Tests Errored", ">>>>> Tests Timed Out")


def read_log(path):
    return path.read_bytes().decode("utf-8", "replace")


def stored_instance(instance_id):
    row = ROWS[instance_id]
    return make_instance(
        instance_id=instance_id,
        log_parser=row["log_parser"],
        eval_type=row["eval_type"],
        fail_to_pass=tuple(row["FAIL_TO_PASS"]),
        pass_to_pass=tuple(row["PASS_TO_PASS"]),
    )


@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: case["log"])
def test_real_logs(case, official_report):
    instance = stored_instance(case["instance_id"])
    verdict = judge(instance, read_log(LOGS / case["log"]), "patch")
    assert verdict.report() == official_report(instance, "patch", LOGS / case["log"])
    assert (verdict.resolved, verdict.patch_applied) == (case["resolved"], case["applied"])
    assert verdict.resolved_v4 == case["resolved"]


def generate_case(rng):
    """An instance and a log: markers mostly in place, expected tests mostly present."""
    body = generate_lines(rng, rng.randrange(0, 12))
    instance = make_instance(log_parser=f"parse_log_{rng.choice(PARSER_NAMES)}")
    try:
        names = list(parse(instance.log_parser, "\n".join(body)))
    except ValueError:
        names = []
    pool = names * 3 + [name[: rng.randrange(1, len(name) + 1)] for name in names if "[" in name] + [rng.choice(TESTS)]
    draw = lambda most: tuple(rng.choice(pool) for _ in range(rng.randrange(0, most)))  # noqa: E731
    around = lambda: [rng.choice(SURROUNDINGS) for _ in range(rng.choice((0, 0, 0, 1, 2)))]  # noqa: E731
    parts = [*around(), START, *body, END, *around()]
    if rng.random() < 0.3:
        parts.append(f">>>>> Test Exit Code: {rng.choice((0, 0, 1, 2, -9))}")
    for rare in (*FATAL, START, END):
        if rng.random() < 0.02:
            parts.insert(rng.randrange(len(parts) + 1), rare)
    if rng.random() < 0.1:
        parts.pop(rng.randrange(len(parts)))
    changes = {"fail_to_pass": draw(3), "pass_to_pass": draw(4)}
    eval_type = "fail_only" if rng.random() < 0.1 else "pass_and_fail"
    return make_instance(log_parser=instance.log_parser, eval_type=eval_type, **changes), rng.choice(
        ("\n", "\n", "\n", "\r\n")
    ).join(parts)


def test_equals_official_on_generated_logs(tmp_path, official_report):
    rng = random.Random(20)
    path = tmp_path / "log.txt"
    seen = {"resolved": 0, "unresolved": 0, "ungradable": 0}
    for _ in range(GENERATED):
        instance, log = generate_case(rng)
        path.write_bytes(log.encode())
        patch = rng.choice(("diff", "diff", "diff", "", None))
        verdict = judge(instance, log, patch)
        try:
            expected = official_report(instance, patch, path)
        except IndexError:
            assert verdict.status in ("ungradable", "empty_patch")
            assert not verdict.resolved
            continue
        assert verdict.report() == expected, log
        seen[verdict.status] = seen.get(verdict.status, 0) + 1
    assert min(seen[status] for status in ("resolved", "unresolved", "ungradable")) > GENERATED / 20, seen


def log_of(*lines, after=()):
    return "\n".join(["+ git apply", START, *lines, END, *after])


def test_skipping_what_must_be_fixed_fixes_nothing():
    instance = make_instance(fail_to_pass=("t",), pass_to_pass=("u",))
    verdict = judge_log(instance, log_of("SKIPPED t", "PASSED u"))
    assert (verdict.resolved, verdict.resolved_v4) == (False, True)


def test_skipping_what_passed_is_no_regression():
    instance = make_instance(fail_to_pass=("t",), pass_to_pass=("u",))
    verdict = judge_log(instance, log_of("PASSED t", "SKIPPED u"))
    assert verdict.resolved
    assert verdict.tests_status["PASS_TO_PASS"] == {"success": ["u"], "failure": []}


@pytest.mark.parametrize(("second", "resolved"), [("PASSED", True), ("XFAIL", True), ("FAILED", False)])
def test_truncated_names_need_agreement(second, resolved):
    instance = make_instance(fail_to_pass=("t[log(a",))
    verdict = judge_log(instance, log_of("PASSED t[log(a)-1]", f"{second} t[log(a)-2]"))
    assert (verdict.resolved, verdict.resolved_v4) == (resolved, False)


@pytest.mark.parametrize(("code", "resolved"), [(0, True), (1, False)])
def test_printed_passes_do_not_outweigh_the_exit_code(code, resolved):
    log = log_of("PASSED tests/test_a.py::test_one", after=[f">>>>> Test Exit Code: {code}"])
    verdict = judge_log(make_instance(), log)
    assert (verdict.resolved, verdict.resolved_v4) == (resolved, True)
    assert verdict.status == ("resolved" if resolved else "ungradable")


@pytest.mark.parametrize(
    ("log", "patch", "status"),
    [
        (log_of("PASSED tests/test_a.py::test_one"), "x", "resolved"),
        (log_of("FAILED tests/test_a.py::test_one"), "x", "unresolved"),
        (log_of("FAILED tests/test_a.py::test_one"), "", "empty_patch"),
        ("", None, "empty_patch"),
        (">>>>> Patch Apply Failed:\nerror: corrupt patch", "x", "patch_failed"),
        (f"{START}\nslow\n\nTimeout error: 9 seconds exceeded.", "x", "timeout"),
        (log_of(after=[">>>>> Tests Timed Out"]), "x", "timeout"),
        (f"{START}\nPASSED tests/test_a.py::test_one", "x", "ungradable"),
    ],
)
def test_statuses(log, patch, status):
    assert judge(make_instance(), log, patch).status == status


def test_instrumented_scripts_equal_official():
    from swebench.harness.utils import make_test_spec

    header = "#!/bin/bash\nset -uxo pipefail\ncd /testbed\n"
    for body in (f": '{START}'\npytest\n: '{END}'\ngit checkout x\n\n", "pytest\n", f": '{END}'"):
        instance = make_instance(eval_script=header + body)
        official = make_test_spec({**to_row(instance), "image": ""}).eval_script
        assert instrument(instance.eval_script) == official
