"""Dataset rows: every source gives the same instances; whatever is wrong is named."""

import json
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from harness.errors import UserError
from harness.instances import dataset_hash, load_instances

ROW = {
    "instance_id": "o__r-1",
    "repo": "o/r",
    "base_commit": "0" * 40,
    "version": "1.0",
    "problem_statement": "It breaks.",
    "patch": "diff",
    "test_patch": "diff",
    "FAIL_TO_PASS": '["t[a b]"]',
    "PASS_TO_PASS": "[]",
    "eval_script": "#!/bin/bash\n",
    "log_parser": "parse_log_pytest",
    "eval_type": "pass_and_fail",
    "image": "swebench/x:latest",
    "difficulty": "<15 min fix",
    "hints_text": "not read",
}
SECOND = ROW | {"instance_id": "o__r-2", "FAIL_TO_PASS": ["u"], "image": None}


def write(path, rows):
    if path.suffix == ".parquet":
        rows = [row | {"FAIL_TO_PASS": json.dumps(row["FAIL_TO_PASS"])} if row is SECOND else row for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.parquet"])
def test_every_file_type_reads_the_same(tmp_path, name):
    first, second = load_instances(write(tmp_path / name, [ROW, SECOND]))
    assert (first.instance_id, first.fail_to_pass, first.image) == ("o__r-1", ("t[a b]",), "swebench/x:latest")
    assert (second.fail_to_pass, second.pass_to_pass, second.image, second.tree) == (("u",), (), None, None)


def test_starter_rows_are_instances():
    instances = load_instances("starter")
    assert len(instances) == len({instance.instance_id for instance in instances}) > 0
    assert all(instance.tree and instance.tree.is_dir() and instance.image is None for instance in instances)


def test_selection_keeps_the_dataset_order(tmp_path):
    path = write(tmp_path / "d.jsonl", [ROW, SECOND])
    assert [item.instance_id for item in load_instances(path, ["o__r-2", "o__r-1"])] == ["o__r-1", "o__r-2"]
    assert [item.instance_id for item in load_instances(path, ["o__r-2"])] == ["o__r-2"]
    assert [item.instance_id for item in load_instances(path, limit=1)] == ["o__r-1"]


def test_hash_depends_on_content_alone(tmp_path):
    first, second = load_instances(write(tmp_path / "d.jsonl", [ROW, SECOND]))
    assert dataset_hash([first, second]) == dataset_hash([second, replace(first, tree=tmp_path)])
    assert dataset_hash([first, second]) == dataset_hash([second, replace(first, tree={"a.py": ""})])
    assert dataset_hash([first]) != dataset_hash([replace(first, patch="other")])
    assert len(dataset_hash([])) == 64


def without(column):
    return {key: value for key, value in ROW.items() if key != column}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([without("patch")], r"d\.json: row 1 \(o__r-1\): column `patch` is missing"),
        ([without("eval_script")], r"column `eval_script` is missing; rows of the SWE-bench 5\.x format have it"),
        ([without("log_parser")], r"column `log_parser` is missing; rows of the SWE-bench 5\.x"),
        ([without("FAIL_TO_PASS")], r"column `FAIL_TO_PASS` is missing"),
        ([ROW | {"version": 1.0}], r"column version: float; a string would be right"),
        ([ROW | {"PASS_TO_PASS": "[oops"}], r"column PASS_TO_PASS: not JSON"),
        ([ROW | {"PASS_TO_PASS": [1]}], r"column PASS_TO_PASS: a list of test names"),
        ([ROW | {"eval_type": "best"}], r"column eval_type: `best`; one of pass_and_fail, fail_only"),
        ([ROW | {"instance_id": "../x"}], r"row 1: column instance_id: `\.\./x`"),
        ([ROW | {"tree": "/nowhere"}], r"column tree: `/nowhere` is not a folder"),
        ([ROW | {"tree": {"../a": ""}}], r"column tree: `\.\./a`; a relative path inside the tree would be right"),
        ([ROW | {"tree": {"a/.git/config": ""}}], r"column tree: `a/\.git/config`; a relative path"),
        ([ROW | {"tree": {"a.py": 1}}], r"column tree: a\.py: int; the file's text would be right"),
        ([ROW, ROW], r"column instance_id: `o__r-1` occurs twice"),
        ([3], r"row 1: holds int"),
        ([], r"d\.json: holds no rows"),
        ({"a": 1}, r"d\.json: holds dict; a list of rows"),
    ],
)
def test_row_errors(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        load_instances(write(tmp_path / "d.json", rows))
    assert "\n" not in str(caught.value)


def test_unknown_id_suggests_the_nearest(tmp_path):
    with pytest.raises(UserError, match="no instance `o__r-11`; did you mean `o__r-1`"):
        load_instances(write(tmp_path / "d.json", [ROW]), ["o__r-11"])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.parquet", b"no parquet", r"d\.parquet: not a readable parquet file"),
        ("d.jsonl", b'{"a": 1}\n{', r"d\.jsonl: line 2: not JSON"),
        ("d.json", b"\xff", r"d\.json: cannot be read as UTF-8"),
        ("d.csv", b"a,b", r"d\.csv: a dataset is `starter`, `starter-500`, a file ending in"),
    ],
)
def test_file_errors(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_instances(str(tmp_path / name))


@pytest.mark.parametrize("dataset", ["missing.parquet", "startr", "a/b/c"])
def test_no_such_dataset(dataset):
    with pytest.raises(UserError, match=f"^{dataset}: "):
        load_instances(dataset)
