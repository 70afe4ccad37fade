"""The committed set: its parts, that the generator still makes it, and that training sees nothing of it."""

import json
import lzma
from collections import Counter

import pytest

from harness.errors import UserError
from harness.grading.validation import validate
from harness.instances import load_instances
from harness.sandbox.namespace import probe
from harness.starter.archive import ARCHIVE, load_archive, pack_rows, write_archive
from harness.starter.generate import __main__ as command
from harness.starter.generate import generate, starter_500, to_row
from harness.starter.generate.draw import is_held_out
from harness.starter.generate.families import FAR, KNOWN
from harness.starter.generate.family import public_names
from harness.starter.generate.parts import is_held_pair

ROWS = starter_500()
TRAINED = 600


def seed_of(row):
    return int(row["instance_id"].rpartition("-")[2])


def changed_file(row):
    return row["tree"][row["patch"].splitlines()[0].rpartition(" b/")[2]]


def test_three_parts_of_instances():
    instances = load_instances("starter-500")
    assert [instance.instance_id for instance in instances] == [row["instance_id"] for row in ROWS]
    assert Counter(row["part"] for row in ROWS) == {"near": 200, "mixed": 200, "far": 100}
    assert Counter(row["part"] for row in ROWS[:60]) == {"near": 24, "mixed": 24, "far": 12}
    assert all(instance.difficulty == row["part"] for instance, row in zip(instances, ROWS, strict=True))
    assert len({row["problem_statement"] for row in ROWS}) == len(ROWS)
    assert ARCHIVE.stat().st_size < 2_000_000


def test_parts_are_varied():
    families = {
        part: Counter(row["family"] for row in ROWS if row["part"] == part) for part in ("near", "mixed", "far")
    }
    assert set(families["far"]) == set(FAR)
    assert len(families["near"]) >= 45
    assert len(families["mixed"]) >= 40
    assert set(families["near"]) | set(families["mixed"]) <= set(KNOWN)
    for part in families:
        kinds = Counter(row["kind"] for row in ROWS if row["part"] == part)
        assert len(kinds) == 15
        assert max(kinds.values()) <= 0.13 * sum(kinds.values())


def test_pairs_of_family_and_kind():
    assert not any(is_held_pair(row["family"], row["kind"]) for row in ROWS if row["part"] == "near")
    assert all(is_held_pair(row["family"], row["kind"]) for row in ROWS if row["part"] == "mixed")


def test_every_changed_file_has_a_name_that_training_cannot_draw():
    assert [row["instance_id"] for row in ROWS if not any(map(is_held_out, public_names(changed_file(row))))] == []


def test_nothing_of_it_occurs_in_training():
    trained = [generate(seed, "train") for seed in range(TRAINED)]
    texts = {text for one in trained for path, text in one.base.items() if path.startswith(f"{one.package}/")}
    texts |= {one.fixed_text for one in trained}
    ids, issues = {one.instance_id for one in trained}, {one.problem_statement for one in trained}
    patches = {one.patch for one in trained}
    for row in ROWS:
        assert row["instance_id"] not in ids
        assert row["problem_statement"] not in issues
        assert row["patch"] not in patches
        assert changed_file(row) not in texts
    # A word of the issue that only it can have: the names are glued from words that training has in other pairs.
    assert {one.package for one in trained}.isdisjoint(row["repo"].partition("/")[2] for row in ROWS)


@pytest.mark.parametrize("row", ROWS[::83], ids=lambda row: row["instance_id"])
def test_the_generator_still_makes_it(row):
    instance = generate(seed_of(row), row["part"])
    made = to_row(instance)
    if any(check.gives_error for check in instance.checks):
        # Python versions word some of their errors differently, and the issue quotes them.
        made["problem_statement"] = row["problem_statement"]
    assert made == row


def test_the_command_writes_and_finds_what_is_stale(tmp_path, monkeypatch, capsys):
    instances = [generate(seed, "far") for seed in (1, 2)]
    archive = tmp_path / "starter-500.jsonl.xz"
    monkeypatch.setattr(command, "ARCHIVE", archive)
    monkeypatch.setattr(command, "select_instances", lambda: instances)
    monkeypatch.setattr(command, "write_archive", lambda rows: write_archive(rows, archive))
    monkeypatch.setattr(command, "load_archive", lambda: load_archive(archive))
    assert command.main(["--write"]) == 0
    assert command.main(["--check"]) == 0
    rows = load_archive(archive)
    assert pack_rows(rows) == archive.read_bytes()
    archive.write_bytes(pack_rows([rows[0], rows[1] | {"version": "2"}]))
    load_archive.cache_clear()
    assert command.main(["--check"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].endswith("2 far; up to date")
    assert printed[2].endswith(f"1 stale, first {rows[1]['instance_id']}")


@pytest.mark.parametrize("data", [b"no xz", lzma.compress(b"{"), lzma.compress(b"\xff")])
def test_damaged_file_is_named(tmp_path, data):
    path = tmp_path / "rows.jsonl.xz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"rows\.jsonl\.xz: cannot be read as rows of starter-500"):
        load_archive(path)


@pytest.mark.namespace
@pytest.mark.skipif(probe() is not None, reason=probe() or "")
def test_gold_resolves_and_the_unpatched_tree_does_not(tmp_path):
    ids = [next(row["instance_id"] for row in ROWS if row["part"] == part) for part in ("near", "mixed", "far")]
    path, found = validate("starter-500", ids, "v", repeats=1, sandbox="namespace", results=tmp_path)
    assert [(one.gold_resolved, one.unpatched_resolved, one.why) for one in found] == [(1, 0, "")] * 3
    assert set(json.loads(path.read_text())["instances"]) == set(ids)
