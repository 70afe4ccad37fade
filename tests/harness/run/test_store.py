"""The run directory: rows, tables, the lock and the guard of its record."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.run.paths import RunPaths
from harness.run.rows import COLUMNS, TaskRow
from harness.run.store import Store, find_difference, lock, read_text, write_text

ROW = TaskRow(
    run_id="r", level="int4", quant="int4", instance_id="a__b-1", repo="a/b", difficulty="easy", repeat=0,
    outcome="resolved", limit="none", resolved=True, resolved_v4=True, submitted=True, steps=3, prompt_tokens=10,
    cached_tokens=5, completion_tokens=7, seconds_agent=1.5, seconds_model=1.0, seconds_tools=0.5, seconds_grading=2.0,
    patch_bytes=6, files_touched=1, attempts=1, infra_reason="", seed=1,
)  # fmt: skip
RECORD: dict[str, Any] = {
    "run_id": "r",
    "config": {"repeats": 1, "agent": {"profile": "text"}},
    "dataset": {"sha256": "x"},
    "prompts_sha256": "p",
    "harness_version": "0.1.0",
    "levels": {},
}


def test_rows_survive_and_tables_are_rebuilt_from_them(tmp_path: Path) -> None:
    store = Store(RunPaths(tmp_path))
    store.begin(RECORD)
    rows = [ROW, replace(ROW, instance_id="a__b-2"), replace(ROW, repeat=1), replace(ROW, level="bf16")]
    patch = "diff --git a/x b/x\r\n+caf\udce9\r\n"
    for row in reversed(rows):
        write_text(store.paths.level(row.level).task(row.instance_id, row.repeat).patch, patch)
        store.finish_task(row)
    again = Store(RunPaths(tmp_path))
    assert set(again.rows.values()) == set(rows)
    again.write_tables()
    table = pq.read_table(again.paths.results)
    assert tuple(table.column_names) == COLUMNS
    assert [row["level"] for row in table.to_pylist()] == ["bf16", "int4", "int4", "int4"]
    lines = again.paths.level("int4").predictions().read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [prediction["instance_id"] for prediction in predictions] == ["a__b-1", "a__b-2"]
    assert set(predictions[0]) == {"instance_id", "model_name_or_path", "model_patch"}
    assert predictions[0]["model_patch"] == patch
    assert len(again.paths.level("int4").predictions(1).read_text().splitlines()) == 1


@given(st.binary(max_size=200))
def test_a_patch_comes_back_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("patch") / "patch.diff"
    write_text(path, data.decode("utf-8", "surrogateescape"))
    assert path.read_bytes() == data
    assert read_text(path).encode("utf-8", "surrogateescape") == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"repeats": 2, "agent": {"profile": "text"}}}, "config.repeats was 1, is now 2"),
        ({"config": {"repeats": 1, "agent": {}}}, 'config.agent.profile was "text", is now null'),
        ({"dataset": {"sha256": "y"}}, 'dataset.sha256 was "x", is now "y"'),
        ({"agent_version": 2}, "agent_version was null, is now 2"),
        ({"prompts_sha256": "q"}, 'prompts_sha256 was "p", is now "q"'),
    ],
)
def test_a_changed_run_is_refused_by_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    Store(RunPaths(tmp_path)).begin(RECORD)
    with pytest.raises(UserError) as error:
        Store(RunPaths(tmp_path)).begin({**RECORD, **change})
    assert message in str(error.value)
    assert "run.json" in str(error.value)


def test_an_unchanged_run_continues_with_its_own_record(tmp_path: Path) -> None:
    first = Store(RunPaths(tmp_path))
    first.begin({**RECORD, "started": "then"})
    second = Store(RunPaths(tmp_path))
    second.begin({**RECORD, "started": "now"})
    assert second.record["started"] == "then"


def test_the_image_of_an_instance_stays_the_same(tmp_path: Path) -> None:
    store = Store(RunPaths(tmp_path))
    store.begin({**RECORD, "sandboxes": {"names": ["docker"], "images": {}}})
    store.note_image("a__b-1", {"image": "x", "digest": "1"})
    store.save_record()
    again = Store(RunPaths(tmp_path))
    again.note_image("a__b-1", {"image": "x", "digest": "1", "origin": "elsewhere"})
    assert again.record["sandboxes"]["images"] == {"a__b-1": {"image": "x", "digest": "1"}}
    with pytest.raises(UserError, match=r"sandboxes\.images\.a__b-1\.digest was 1, is now 2"):
        again.note_image("a__b-1", {"image": "x", "digest": "2"})


def test_differences_name_the_innermost_key() -> None:
    assert find_difference({"a": {"b": [1]}}, {"a": {"b": [1]}}, "x") is None
    assert find_difference({"a": {"b": [1]}}, {"a": {"b": [2]}}, "x") == "x.a.b was [1], is now [2]"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = Store(RunPaths(tmp_path))
    store.finish_task(ROW)
    path = store.paths.level("int4").task("a__b-1").task
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"task\.json: not valid JSON"):
        Store(RunPaths(tmp_path))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"task\.json: not a task row"):
        Store(RunPaths(tmp_path))


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    leftover = tmp_path / "levels/int4/.task.json.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    Store(RunPaths(tmp_path))
    assert not leftover.exists()


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from harness.run.paths import RunPaths
from harness.run.store import lock
with lock(RunPaths(Path(sys.argv[1]))):
    print("locked", flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match=f"process {other.pid} is working on this run"),
            lock(RunPaths(tmp_path)),
        ):
            pass
        other.kill()
        other.wait()
        with lock(RunPaths(tmp_path)):
            pass
