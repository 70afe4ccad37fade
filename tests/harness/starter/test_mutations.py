"""Kinds of bug: what each makes of a line, and that the rest of the text stays."""

import ast
import random

import pytest

from harness.starter.generate.draw import Draw
from harness.starter.generate.families import FAR, KNOWN
from harness.starter.generate.family import strip_annotations
from harness.starter.generate.mutations import KINDS, find_mutations


def mutants(source, kind):
    """The changed lines that the kind gives, with their neighbours' removal shown as an empty line."""
    lines = source.split("\n")
    found = set()
    for mutation in find_mutations(source).get(kind, []):
        changed = mutation.apply(source).split("\n")
        if len(changed) < len(lines):
            found.add("")
        else:
            found |= {new.strip() for old, new in zip(lines, changed, strict=True) if old != new}
    return found


MANY = ("wrong_bound", "wrong_variable")
"""Kinds that make more of a line than a case lists."""

CASES = [
    ("wrong_comparison", "if a <= b > 3:\n        pass", {"if a < b > 3:", "if a <= b >= 3:"}),
    ("wrong_operator", "x = (a + b) * 2", {"x = (a - b) * 2", "x = (a + b) + 2"}),
    ("wrong_operator", "x //= a\n    x += 1", {"x -= 1"}),
    ("wrong_logic", "return a and b or c", {"return a or b or c", "return a and b and c"}),
    ("off_by_one", "return a[1] + 10", {"return a[1] + 11", "return a[1] + 9"}),
    ("wrong_bound", "return a[1:]", {"return a[2:]", "return a[0:]"}),
    ("wrong_bound", "return a[-1]", {"return a[-2]", "return a[0]"}),
    ("wrong_bound", "return a[:b - 1]", {"return a[:b]"}),
    ("wrong_bound", "x = range(1, len(a))", {"x = range(2, len(a))", "x = range(0, len(a))"}),
    ("swapped_arguments", "return f(a, b)", {"return f(b, a)"}),
    ("swapped_operands", "return a - b[0]", {"return b[0] - a"}),
    ("swapped_operands", "return '-' + a", {"return a + '-'"}),
    ("swapped_operands", "return a + b", set()),
    ("wrong_method", "return min(a.strip())", {"return max(a.strip())", "return min(a.rstrip())"}),
    ("negated_condition", "if not a:\n        pass", {"if a:"}),
    ("negated_condition", "while a is None:\n        pass", {"while a is not None:"}),
    ("negated_condition", "if a < b:\n        pass", {"if a >= b:"}),
    ("negated_condition", "if a and b:\n        pass", {"if not (a and b):"}),
    ("wrong_variable", "c = a", {"c = b", "c = c"}),
    ("lost_return", "x = 1\n    return x", {""}),
    ("lost_return", "return f(a)", {"f(a)"}),
    ("wrong_exception", "raise ValueError('no')", {"raise TypeError('no')", "raise KeyError('no')"}),
    ("missing_guard", "if a:\n        return 1\n    return 2", {""}),
    ("missing_guard", "if a:\n        return 1\n    elif b:\n        return 2\n    return 3", set()),
    ("missing_update", "a.n += 1\n    return a", {""}),
    ("missing_update", "a.n += 1", set()),
]


@pytest.mark.parametrize(("kind", "body", "expected"), CASES)
def test_what_a_kind_makes_of_a_line(kind, body, expected):
    found = mutants(f'def f(a, b):\n    """As 1 < 2."""\n    {body}\n', kind)
    assert found >= expected if kind in MANY else found == expected


def test_wrong_defaults():
    source = "def f(a=2, *, b=True, c=', ', d=None):\n    return a\n"
    assert mutants(source, "wrong_default") == {
        "def f(a=3, *, b=True, c=', ', d=None):",
        "def f(a=1, *, b=True, c=', ', d=None):",
        "def f(a=2, *, b=False, c=', ', d=None):",
        'def f(a=2, *, b=True, c=",", d=None):',
    }


def test_attributes_of_an_object_are_variables():
    source = "class A:\n    def set(self):\n        self.x = self.y = 1\n\n    def f(self):\n        return self.x\n"
    assert "return self.y" in mutants(source, "wrong_variable")


def family_sources():
    for name, family in {**KNOWN, **FAR}.items():
        yield pytest.param(family(Draw(random.Random(name), held_out=True)).text, id=name)


@pytest.mark.parametrize("source", list(family_sources()))
def test_mutants_of_every_family_parse_and_differ_in_three_lines_at_most(source):
    texts = [mutation.apply(source) for mutations in find_mutations(source).values() for mutation in mutations]
    assert len(set(texts)) == len(texts) > 10
    for text in texts:
        ast.parse(text)
        old, new = source.split("\n"), text.split("\n")
        assert 0 <= len(old) - len(new) <= 3
        if len(old) == len(new):
            assert sum(a != b for a, b in zip(old, new, strict=True)) == 1


def test_every_kind_has_a_place_in_several_families():
    found = [set(find_mutations(parameter.values[0])) for parameter in family_sources()]
    assert len(KINDS) == 15
    assert [kind for kind in KINDS if sum(kind in kinds for kinds in found) < 5] == []


def test_annotations_go_and_nothing_else():
    source = (
        "class A:\n    size: int = 3\n\n    def f(self, a: int, *, b: dict[str, int] = {}) -> list[int]:\n"
        '        """Of b: int."""\n        self.x: list[int] = []\n        return [a]\n'
    )
    assert strip_annotations(source) == (
        "class A:\n    size: int = 3\n\n    def f(self, a, *, b={}):\n"
        '        """Of b: int."""\n        self.x = []\n        return [a]\n'
    )
