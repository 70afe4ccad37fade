"""Generated instances: what each promises, proved by execution here and by pytest and git in real trees."""

import os
import random
import re
import subprocess
import sys
import tracemalloc
from collections import Counter

import pytest

from harness.starter.build import apply_patch, passed, run_tests
from harness.starter.catalogue import directives
from harness.starter.generate import PARTS, generate, to_row
from harness.starter.generate.draw import Draw, is_held_out
from harness.starter.generate.execution import bounded, load_package, observe, run_in
from harness.starter.generate.families import FAR, KNOWN
from harness.starter.generate.family import Probe, public_names
from harness.starter.generate.limits import Endless
from harness.starter.generate.parts import is_held_pair
from harness.tree import commit_tree, write_tree

SAMPLE = [generate(seed, part) for part in PARTS for seed in range(25)]


@pytest.fixture(scope="module")
def trained():
    """Instances of training, far fewer than training has."""
    return [generate(seed, "train") for seed in range(400)]


def distinct(instances):
    """Those whose packages have different names, so that one pytest can import all of them."""
    return list({instance.package: instance for instance in instances}.values())


def outcomes(root, instances):
    """Status of every test of the files that the test patches name; each tree is a folder of `root`."""
    files = [f"{one.instance_id}/{path}" for one in instances for path in directives(one.test_patch)]
    folders = " ".join(one.instance_id for one in instances)
    (root / "pytest.ini").write_text(f"[pytest]\naddopts = --import-mode=importlib\npythonpath = {folders}\n")
    return run_tests(root, files)


def test_tests_fail_and_pass_as_promised_in_real_trees(tmp_path):
    instances = distinct(SAMPLE)
    patches = tmp_path / "patches"
    patches.mkdir()
    for one in instances:
        write_tree(one.base, tmp_path / one.instance_id)
        for name, patch in (("test", one.test_patch), ("gold", one.patch)):
            (patches / f"{one.instance_id}.{name}").write_text(patch)
        apply_patch(patches / f"{one.instance_id}.test", tmp_path / one.instance_id)
    before = outcomes(tmp_path, instances)
    for one in instances:
        apply_patch(patches / f"{one.instance_id}.gold", tmp_path / one.instance_id)
        assert (tmp_path / one.instance_id / one.bug_path).read_text() == one.fixed_text
    after = outcomes(tmp_path, instances)
    assert passed(after) == set(after) == set(before)
    for one in instances:
        there = {test for test in after if test.startswith(f"{one.instance_id}/")}
        failing = {f"{one.instance_id}/{test}" for test in one.fail_to_pass}
        assert there == failing | {f"{one.instance_id}/{test}" for test in one.pass_to_pass}
        assert there - passed(before) == failing != set()
        assert one.pass_to_pass


def run_check(instance, check, folder):
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{"; ".join(check.setup.splitlines())}; print({check.call})"'],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return (done.stdout or done.stderr).splitlines()[-1]


@pytest.mark.parametrize("instance", SAMPLE[::9], ids=lambda instance: f"{instance.part}-{instance.seed}")
def test_a_shell_shows_what_the_checks_say(instance, tmp_path):
    write_tree(instance.base, tmp_path)
    check = instance.checks[0]
    assert run_check(instance, check, tmp_path) == check.actual
    (tmp_path / instance.bug_path).write_text(instance.fixed_text)
    assert run_check(instance, check, tmp_path) == check.expected


@pytest.mark.parametrize("instance", SAMPLE, ids=lambda instance: f"{instance.part}-{instance.seed}")
def test_form(instance):
    files = instance.base
    assert len(files) <= 8
    assert all(text.endswith("\n") and text.isascii() for text in files.values())
    assert max(text.count("\n") for text in files.values()) < 60
    source = [
        line for path, text in files.items() if path.startswith(f"{instance.package}/") for line in text.splitlines()
    ]
    assert max(map(len, source)) <= 120
    changed = [line for line in instance.patch.splitlines() if re.match(r"[+-](?![+-])", line)]
    assert 1 <= len(changed) <= 3
    assert files[instance.bug_path] != instance.fixed_text
    assert 25 <= len(instance.problem_statement.split("\n\n", 1)[1].split()) <= 90
    assert re.search(rf"\b(def|class) {instance.subject}\b", instance.fixed_text)
    assert instance.subject in instance.problem_statement
    for check in instance.checks:
        assert check.expected != check.actual
        assert not set('"\\`$!') & set(check.setup + check.call + check.expected + check.actual)
    assert instance.checks[0].call in instance.problem_statement
    assert not any(" " in test for test in (*instance.fail_to_pass, *instance.pass_to_pass))


@pytest.mark.parametrize("instance", SAMPLE[::7], ids=lambda instance: f"{instance.part}-{instance.seed}")
def test_issue_does_not_give_the_fix_away(instance):
    fixed = [line[1:].strip() for line in instance.patch.splitlines() if re.match(r"\+(?!\+)", line)]
    assert [line for line in fixed if len(line) > 12 and line in instance.problem_statement] == []


def test_the_same_in_every_process():
    command = (
        "import hashlib; from harness.starter.generate import generate;"
        "print(hashlib.sha256(repr([generate(s, p) for p in ('train', 'mixed', 'far') for s in range(40, 52)])"
        ".encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_rows_name_the_commit_that_git_makes(tmp_path):
    instance = SAMPLE[0]
    row = to_row(instance)
    write_tree(row["tree"], tmp_path)
    assert commit_tree(tmp_path) == row["base_commit"]
    assert row["base_commit"] in row["eval_script"]
    assert (row["part"], row["difficulty"], row["image"]) == ("train", "train", None)


def test_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part 'test'; one of train, near, mixed, far"):
        generate(1, "test")


def test_training_has_every_family_and_kind_but_no_held_out_name_or_pair(trained):
    assert len({instance.instance_id for instance in trained}) == len(trained)
    assert set(KNOWN) - {instance.family for instance in trained} == set()
    assert set(FAR).isdisjoint(instance.family for instance in trained)
    kinds = Counter(instance.kind for instance in trained)
    assert len(kinds) == 15
    assert min(kinds.values()) >= 5
    assert not any(is_held_pair(instance.family, instance.kind) for instance in trained)
    modules = [text for one in trained for path, text in one.base.items() if path.startswith(f"{one.package}/")]
    assert [name for text in modules for name in public_names(text) if is_held_out(name)] == []
    assert not any(is_held_out(instance.package) for instance in trained)


def test_a_draw_for_training_gives_no_held_out_name():
    draw = Draw(random.Random(1), held_out=False)
    assert not any(is_held_out(draw.package()) for _ in range(100))
    held_out = Draw(random.Random(1), held_out=True)
    assert all(is_held_out(held_out.package()) for _ in range(50))


@pytest.mark.parametrize(
    "text",
    ["while True:\n        pass", "while True: n = 1", "return sum(1 for _ in iter(int, 1))", "return f(n + 1) + f(n)"],
)
def test_endless_code_ends(text):
    modules = load_package("pk", {"pk/a.py": f"def f(n=0):\n    {text}\n"})
    assert observe(modules["pk.a"].__dict__, Probe("f()")) is None
    assert sys.gettrace() is None or "harness" not in repr(sys.gettrace())


GREEDY = {
    "doubling in a loop over itself": "for _ in items:\n        items += items",
    "doubling inside another": "while True:\n        groups[0].extend(groups[0])",
    "doubling of an attribute": "while True:\n        box.text = box.text + box.text",
    "squaring": "n = 3\n    while True:\n        n = n * n",
    "many long values": "while True:\n        groups.append('x' * 900_000)",
    "a factor": "return 'x' * 10 ** 12",
    "a factor of a list": "return 10 ** 12 * [0]",
    "a factor in place": "items *= 10 ** 12",
    "a power": "return 5 ** 1024 ** 4",
    "a shift": "return 1 << 10 ** 12",
    "a width": "return 'x'.rjust(10 ** 12)",
    "a width of a format": "n = 10 ** 12\n    return f'{1:{n}}'",
    "a range": "return list(range(10 ** 12))",
    "a range downward": "return sum(range(0, -10 ** 12, -1))",
}


@pytest.mark.parametrize("body", GREEDY.values(), ids=GREEDY)
def test_code_that_makes_too_much_ends_early(body):
    text = f"class Box:\n    text = ''\n\n\ndef f(items, groups, box):\n    box.text = 'x'\n    {body}\n"
    namespace = load_package("pk", {"pk/a.py": text})["pk.a"].__dict__
    tracemalloc.start()
    try:
        assert observe(namespace, Probe("f([4], [[1]], Box())")) is None
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


RIGHT = """def f(a, b=3):
    a *= 2
    c = [a * b, b ** 2, 1 << b, "x" * b, [0] * b, 2.5 * 2]
    return [*c, "y".rjust(b), f"{a:{b}}|{b:>4}", list(range(b, 0, -2))]
"""


def test_bounds_change_nothing_else():
    namespace = load_package("pk", {"pk/a.py": RIGHT})["pk.a"].__dict__
    wanted = [30, 9, 8, "xxx", [0, 0, 0], 5.0, "  y", " 10|   3", [3, 1]]
    assert observe(namespace, Probe("f(5)")).value == wanted
    for call in ("f({})", "f(2, 'x')", "f(2, None)", "f('z', -1)"):
        plain = {}
        exec(RIGHT, plain)
        try:
            want = eval(call, plain)
        except Exception as error:
            want = f"{type(error).__name__}: {error}"
        found = observe(namespace, Probe(call))
        assert want in (found.error, found.value)


def test_want_of_memory_is_no_outcome():
    modules = load_package("pk", {"pk/a.py": "def f():\n    raise MemoryError\n"})
    with pytest.raises(MemoryError):
        observe(modules["pk.a"].__dict__, Probe("f()"))


def test_no_handler_of_the_code_takes_the_bound():
    modules = load_package(
        "pk",
        {"pk/a.py": "def f():\n    while True:\n        try:\n            f.x\n        except Exception: pass\n"},
    )
    with pytest.raises(Endless), bounded(1_000):
        modules["pk.a"].__dict__["f"]()


def test_packages_are_imported_from_memory_alone():
    files = {
        "pk/__init__.py": "from pk.a import f\n",
        "pk/a.py": "import math\n\ndef f():\n    return math.floor(2.5)\n",
    }
    modules = load_package("pk", files)
    namespace = {}
    run_in(namespace, "import pk\nimport pk.a\nfrom pk import f\nresult = [f(), pk.f(), pk.a.f()]\n", modules)
    assert namespace["result"] == [2, 2, 2]
    assert "pk" not in sys.modules
