"""Test logs become status maps: one pure parser per test runner that SWE-bench Verified names.

Behaviour follows the log parsers of swebench 5.0.2 (SWE-bench, MIT), including what looks odd, because the expected
test names of the dataset were recorded through them: names cut at a space, docstrings that stand for django tests,
a last writer that wins. `parse(..., version=4)` follows swebench 4.1.0 where the two differ.
"""

import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Literal

from harness.errors import UserError

StatusMap = dict[str, str]
GraderVersion = Literal[4, 5]
Parser = Callable[[str, GraderVersion], StatusMap]


class Status(StrEnum):
    """The words that grading knows. A log may hold others (`PASSED:`), which count as neither passed nor failed."""

    FAILED = "FAILED"
    PASSED = "PASSED"
    SKIPPED = "SKIPPED"
    ERROR = "ERROR"
    XFAIL = "XFAIL"


class LogError(ValueError):
    """The log holds a line on which the official parser stops with an exception: the run is not gradable."""


_WORDS = tuple(word.value for word in Status)
_SKIP_COUNT = re.compile(r"\[\d+\]")


def _is_skip_count(words: list[str]) -> bool:
    """`SKIPPED [3] path:line: reason` counts tests; it names none."""
    return words[0] == Status.SKIPPED and _SKIP_COUNT.fullmatch(words[1]) is not None


def _pytest_summary(log: str, version: GraderVersion) -> Iterator[tuple[str, str]]:
    """(test, status) of every line of pytest's `-rA` summary: the second word and the first."""
    for line in log.split("\n"):
        if not line.startswith(_WORDS):
            continue
        words = (line.replace(" - ", " ") if line.startswith(Status.FAILED) else line).split()
        if len(words) > 1 and (version == 4 or not _is_skip_count(words)):
            yield words[1], words[0]


def parse_pytest(log: str, version: GraderVersion = 5) -> StatusMap:
    """Plain `pytest -rA`."""
    return dict(_pytest_summary(log, version))


def _shorten_path_option(test: str) -> str:
    """`test_x[/home/me/a.txt]` is `test_x[/a.txt]`, so that the name does not depend on where the checkout lies."""
    main, _, rest = test.partition("[")
    option, closed, _ = rest.rpartition("]")
    if not closed:
        return test
    if option.startswith("/") and not option.startswith("//") and "*" not in option:
        option = "/" + option.rpartition("/")[2]
    return f"{main}[{option}]"


def parse_pytest_options(log: str, version: GraderVersion = 5) -> StatusMap:
    """`pytest -rA` whose parameters may be absolute paths."""
    return {_shorten_path_option(test): status for test, status in _pytest_summary(log, version)}


def parse_matplotlib(log: str, version: GraderVersion = 5) -> StatusMap:
    """`pytest -rA` whose parameters print an enumeration by name on some Python versions and by value on others."""
    return parse_pytest(log.replace("MouseButton.LEFT", "1").replace("MouseButton.RIGHT", "3"), version)


_COLOUR = re.compile(r"\[\d+m")
_CONTROL = dict.fromkeys(range(1, 32))


def parse_pytest_v2(log: str, version: GraderVersion = 5) -> StatusMap:
    """Coloured pytest output, status first (new) or last (old). Names keep their spaces, except in version 4."""
    statuses: StatusMap = {}
    for raw in log.split("\n"):
        line = _COLOUR.sub("", raw).translate(_CONTROL)
        if line.startswith(_WORDS):
            statuses.update(_pytest_summary(line, version) if version == 4 else _status_first(line))
        elif line.endswith(_WORDS) and len(words := line.split()) > 1:
            name, status = (words[0], words[1]) if version == 4 else (" ".join(words[:-1]), words[-1])
            statuses[name] = status
    return statuses


def _status_first(line: str) -> StatusMap:
    words = (line.partition(" - ")[0] if line.startswith(Status.FAILED) else line).split()
    return {" ".join(words[1:]): words[0]} if len(words) > 1 and not _is_skip_count(words) else {}


def parse_seaborn(log: str, version: GraderVersion = 5) -> StatusMap:
    """`pytest -rA` with or without `-v`: `FAILED id`, `PASSED id` or `id PASSED [ 5%]`, and nothing else.

    Version 4 stopped at a status word that stands alone on its line.
    """
    statuses: StatusMap = {}
    for line in log.split("\n"):
        words = line.split()
        if len(words) < 2:
            if version == 4 and (line.startswith((Status.FAILED, Status.PASSED)) or f" {Status.PASSED} " in line):
                raise LogError(f"status without a test: {line!r}")
        elif line.startswith(Status.FAILED):
            statuses[words[1]] = Status.FAILED
        elif f" {Status.PASSED} " in line:
            if words[1] == Status.PASSED:
                statuses[words[0]] = Status.PASSED
        elif line.startswith(Status.PASSED):
            statuses[words[1]] = Status.PASSED
    return statuses


def parse_sympy(log: str, version: GraderVersion = 5) -> StatusMap:
    """sympy's `bin/test --verbose`: `____ path.py:test ____` heads a failure, `test_x ok|F|E` reports one test."""
    statuses: StatusMap = {}
    for line in log.split("\n"):
        headline = line.partition(" ")[2].rpartition(" ")[0]
        if ".py:" in headline:
            statuses[headline] = Status.FAILED
    endings = {" E": Status.ERROR, " F": Status.FAILED, " ok": Status.PASSED}
    for line in map(str.strip, log.split("\n")):
        for ending, status in endings.items():
            if line.startswith("test_") and line.endswith(ending):
                statuses[line.split()[0]] = status
    return statuses


_DJANGO_VERSION_TEST = "--version is equivalent to version"
_DJANGO_MIGRATION = "Applying sites.0002_alter_domain_unique...test_no_migrations"
_DJANGO_PASSED = (" ... ok", " ... OK", " ...  OK")
# What django's runner prints between a test's name and its `ok`, seen in real logs.
_DJANGO_INTERRUPTED = tuple(
    re.compile(rf"^(.*?)\s\.\.\.\s{text}\nok$", re.MULTILINE)
    for text in (
        r"Testing against Django installed in [\s\S]*? silenced\)\.",
        r"Internal Server Error: /.*/",
        r"System check identified no issues \(0 silenced\)",
    )
)


def parse_django(log: str, version: GraderVersion = 5) -> StatusMap:
    """django's `runtests.py --verbosity 2` (unittest): `name ... ok`; a docstring's first line can be the name."""
    statuses: StatusMap = {}
    pending: str | None = None
    for line in map(str.strip, log.split("\n")):
        if _DJANGO_VERSION_TEST in line:
            statuses[_DJANGO_VERSION_TEST] = Status.PASSED
        if " ... " in line:
            pending = line.partition(" ... ")[0]
        statuses.update(_django_outcomes(line))
        if line.startswith("ok") and pending is not None:
            statuses[pending] = Status.PASSED
    for pattern in _DJANGO_INTERRUPTED:
        statuses.update((match[1], Status.PASSED) for match in pattern.finditer(log))
    return statuses


def _django_outcomes(line: str) -> Iterator[tuple[str, Status]]:
    """Outcomes that one stripped line states, in the official order: a later one overwrites an earlier one."""
    for suffix in _DJANGO_PASSED:
        if line.endswith(suffix):
            if line.startswith(_DJANGO_MIGRATION):
                line = line.partition("...")[2].strip()
            yield line.removesuffix(suffix), Status.PASSED
            break
    if " ... skipped" in line:
        yield line.partition(" ... skipped")[0], Status.SKIPPED
    for word, status in (("FAIL", Status.FAILED), ("ERROR", Status.ERROR)):
        if line.endswith(f" ... {word}"):
            yield line.partition(f" ... {word}")[0], status
        if line.startswith(f"{word}:"):
            words = line.split()
            if len(words) < 2:
                raise LogError(f"outcome without a test: {line!r}")
            yield words[1], status


_PYTEST = ("pytest", "astroid", "flask", "marshmallow", "pvlib", "pyvista", "sqlfluff", "xarray")
_PYTEST_OPTIONS = ("pytest_options", "pydicom", "pylint", "requests")
_PYTEST_V2 = ("pytest_v2", "astropy", "scikit", "sphinx")

PARSERS: dict[str, Parser] = {
    **{f"parse_log_{name}": parse_pytest for name in _PYTEST},
    **{f"parse_log_{name}": parse_pytest_options for name in _PYTEST_OPTIONS},
    **{f"parse_log_{name}": parse_pytest_v2 for name in _PYTEST_V2},
    "parse_log_django": parse_django,
    "parse_log_matplotlib": parse_matplotlib,
    "parse_log_seaborn": parse_seaborn,
    "parse_log_sympy": parse_sympy,
}


def find_parser(name: str, where: str) -> Parser:
    """The parser that a dataset's `log_parser` column names; else a `UserError` that starts with `where`."""
    parser = PARSERS.get(name)
    if parser is None:
        raise UserError(f"{where}: unknown log_parser `{name}`; known are {', '.join(sorted(PARSERS))}")
    return parser


def parse(name: str, log: str, *, version: GraderVersion = 5) -> StatusMap:
    """Status map of `log` (lines separated by "\\n") under the dataset's parser `name`.

    Keys are in order of first appearance. Values are `Status` words, or whatever longer word the official parser
    keeps. Raises `UserError` for an unknown name and `LogError` where the official parser raises.
    """
    return find_parser(name, "log_parser")(log, version)
