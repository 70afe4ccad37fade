"""Parsers against swebench 5.0.2's, on logs made of every runner's lines, and their oddities one by one."""

import random

import pytest
from grading_doubles import generate_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.grading.logs import PARSERS, LogError, Status, parse

RUNNERS = ("pytest", "pytest_options", "pytest_v2", "django", "sympy", "seaborn", "matplotlib")
LOGS_PER_RUNNER = 2_000

PINNED = [
    ("pytest", "FAILED a.py::t - assert 1\nERROR b.py - boom", {"a.py::t": "FAILED", "b.py": "ERROR"}),
    ("pytest", "PASSED a.py::t[x y]", {"a.py::t[x": "PASSED"}),
    ("pytest", "SKIPPED [2] a.py:7: why\nPASSED [100%]", {"[100%]": "PASSED"}),
    ("pytest", "PASSED a\nERROR a", {"a": "ERROR"}),
    ("pytest_options", "PASSED a[/home/u/f.txt]\nPASSED b[//h/f]", {"a[/f.txt]": "PASSED", "b[//h/f]": "PASSED"}),
    ("pytest_v2", "FAILED a[x y] - why - not\nb[p q] SKIPPED", {"a[x y]": "FAILED", "b[p q]": "SKIPPED"}),
    ("pytest_v2", "\x1b[32mPASSED\x1b[0m a[1m]", {"a]": "PASSED"}),
    ("matplotlib", "PASSED a[MouseButton.LEFT-MouseButton.RIGHT]", {"a[1-3]": "PASSED"}),
    ("seaborn", "a PASSED [ 5%]\nFAILED b\nSKIPPED c", {"a": "PASSED", "b": "FAILED"}),
    (
        "sympy",
        "____ s/t.py:test_a ____\ntest_a ok\ntest_b E",
        {"s/t.py:test_a": "FAILED", "test_a": "PASSED", "test_b": "ERROR"},
    ),
    ("django", "t (a.B) ... noise\nok", {"t (a.B)": "PASSED"}),
    ("django", "t (a.B) ... skipped 'x'\nu (a.B) ... expected failure", {"t (a.B)": "SKIPPED"}),
    ("django", "ERROR: t (a.B)\nA docstring. ... FAIL", {"t": "ERROR", "A docstring.": "FAILED"}),
]


@pytest.mark.parametrize(("runner", "log", "expected"), PINNED)
def test_oddities_are_kept(runner, log, expected, official_parsers):
    assert parse(f"parse_log_{runner}", log) == expected
    assert official_parsers[f"parse_log_{runner}"](log, None) == expected


@pytest.mark.parametrize("runner", RUNNERS)
def test_equals_official_on_generated_logs(runner, official_parsers):
    rng = random.Random(runner)
    name = f"parse_log_{runner}"
    parsed = 0
    for _ in range(LOGS_PER_RUNNER):
        log = "\n".join(generate_lines(rng, rng.randrange(1, 25)))
        expected = _outcome(lambda: official_parsers[name](log, None), IndexError)  # noqa: B023
        assert _outcome(lambda: parse(name, log), LogError) == expected, log  # noqa: B023
        parsed += bool(expected)
    assert parsed > LOGS_PER_RUNNER / 2


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RUNNERS),
    st.lists(
        st.one_of(
            st.sampled_from(
                ["PASSED", "FAILED", "SKIPPED", " ... ", "ok", " ", "\n", "[", "]", ".py:", "test_", " - "]
            ),
            st.text(max_size=4),
        )
    ),
)
def test_equals_official_on_any_text(official_parsers, runner, parts):
    log = "".join(parts)
    name = f"parse_log_{runner}"
    expected = _outcome(lambda: official_parsers[name](log, None), IndexError)
    assert _outcome(lambda: parse(name, log), LogError) == expected


def test_aliases_equal_official(official_parsers):
    rng = random.Random(3)
    names = {name for name, parser in official_parsers.items() if parser.__module__.endswith("log_parsers.python")}
    assert set(PARSERS) == names
    for _ in range(20):
        log = "\n".join(line for line in generate_lines(rng, 30) if not line.startswith(("FAIL:", "ERROR:")))
        for name in names:
            assert parse(name, log) == official_parsers[name](log, None)


def test_version_4_reads_single_words():
    log = "FAILED a[x y] - why\nb[p q] PASSED\nSKIPPED [2] a.py:7: why"
    assert parse("parse_log_pytest_v2", log, version=4) == {"a[x": "FAILED", "b[p": "q]", "[2]": "SKIPPED"}


def test_unknown_parser_is_a_user_error():
    with pytest.raises(UserError, match=r"unknown log_parser `parse_log_cobol`; known are .*parse_log_django"):
        parse("parse_log_cobol", "")


def test_status_words_equal_official():
    from swebench.harness.constants import TestStatus

    assert {word.value for word in Status} == {word.value for word in TestStatus}


def _outcome(run, error):
    """Items in order, because a truncated name takes the first candidate; or the fact that the parser raised."""
    try:
        return list(run().items())
    except error:
        return "raised"
