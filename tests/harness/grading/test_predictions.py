"""Predictions files: every accepted shape, and each error by its file, place and key."""

import json

import pytest
from grading_doubles import make_instance

from harness.errors import UserError
from harness.grading.predictions import Prediction, read_predictions, write_predictions

INSTANCES = [
    make_instance(instance_id="o__r-1", patch="gold 1\n"),
    make_instance(instance_id="o__r-2", patch="gold 2\n"),
]
ENTRY = {"instance_id": "o__r-1", "model_name_or_path": "org/model", "model_patch": "diff\n"}
PREDICTION = Prediction("o__r-1", "org/model", "diff\n")


def test_built_in_sources():
    assert [item.model_patch for item in read_predictions("gold", INSTANCES)] == ["gold 1\n", "gold 2\n"]
    assert read_predictions("empty", INSTANCES)[1] == Prediction("o__r-2", "empty", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", json.dumps([ENTRY])),
        ("p.json", json.dumps({"o__r-1": ENTRY})),
        ("p.jsonl", "\n" + json.dumps(ENTRY | {"extra": 1}) + "\n\n"),
    ],
)
def test_file_shapes(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_predictions(str(path), INSTANCES) == [PREDICTION]


def test_round_trip(tmp_path):
    predictions = [PREDICTION, Prediction("o__r-2", "m", None)]
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(str(tmp_path / "p.jsonl"), INSTANCES) == predictions


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", r"p\.txt: predictions are `gold`, `empty`, or a file ending in \.json or \.jsonl"),
        ("p.json", None, r"p\.json: no such file"),
        ("p.json", "{", r"p\.json: not JSON"),
        ("p.json", "3", r"p\.json: holds int"),
        ("p.json", "[]", r"p\.json: holds no predictions"),
        ("p.jsonl", "\n7\n", r"p\.jsonl: line 2: holds int"),
        ("p.json", json.dumps([{"model_patch": ""}]), r"entry 1: key instance_id"),
        ("p.json", json.dumps([{**ENTRY, "model_name_or_path": 3}]), r"entry 1: key model_name_or_path: `3`"),
        ("p.json", json.dumps([{**ENTRY, "model_patch": 3}]), r"entry 1: key model_patch"),
        ("p.json", json.dumps([{**ENTRY, "model_patch": "\ud800"}]), r"entry 1: key model_patch: not text"),
        ("p.json", json.dumps([ENTRY, ENTRY]), r"`o__r-1` occurs 2 times"),
        (
            "p.json",
            json.dumps([{**ENTRY, "instance_id": "o__r-3"}]),
            r"p\.json: no instance `o__r-3`; did you mean `o__r-",
        ),
    ],
)
def test_errors(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_predictions(str(path), INSTANCES)
