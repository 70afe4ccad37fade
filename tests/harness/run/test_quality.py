"""What is noted of a level beside its tasks."""

import json

import pytest

from harness.agent.model import Usage
from harness.agent.trajectory import ActionRecord, Step, Trajectory
from harness.run import quality
from harness.run.paths import LevelPaths


def step(*kinds, error=""):
    actions = tuple(ActionRecord(kind, "", 0, False, 0, 0.0) for kind in kinds)
    return Step(1, 2, 0, Usage(), 9, "stop", 0.0, 0.0, actions, error)


def test_calls_that_did_not_parse_count_as_made():
    steps = [step("bash"), step("misuse", "edit"), step(error="no call"), step("submit")]
    assert quality.count_calls(steps) == (5, 3)


def test_calls_add_up_over_tasks(tmp_path):
    entry = {}
    for name in ("a", "b"):
        Trajectory({}, [], [step("bash", "misuse")]).write(tmp_path / name)
        quality.note_calls(entry, tmp_path / name)
    quality.note_calls(entry, tmp_path / "none")
    assert entry == {"tool_calls": 4, "tool_calls_valid": 2}


def test_joules_are_noted_only_where_both_readings_are_known(monkeypatch):
    entry = {}
    monkeypatch.setattr(quality, "read_joules", lambda: 150.0)
    quality.note_joules(entry, None)
    assert entry == {}
    quality.note_joules(entry, 100.0)
    quality.note_joules(entry, 140.0)
    assert entry == {"joules": 60.0}


@pytest.mark.parametrize("limit", [500, 10_000])
def test_transcripts_share_the_limit(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(quality, "TRANSCRIPT_LIMIT", limit)
    paths = LevelPaths(tmp_path)
    assert not quality.write_transcript(paths, tmp_path / "text", None)
    for name in ("a", "b"):
        answer = {"role": "assistant", "content": name * 50}
        messages = [{"role": "user", "content": "?"}, answer, {"role": "user", "content": "more"}, answer, answer]
        task = paths.task(name)
        task.root.mkdir(parents=True)
        Trajectory({}, messages).write(task.trajectory)
    assert quality.write_transcript(paths, tmp_path / "text", [{"type": "function"}])
    first, second = (json.loads(line) for line in (tmp_path / "text").read_text().splitlines())
    assert first["tools"] == [{"type": "function"}]
    assert [m["role"] for m in first["messages"]] == [m["role"] for m in second["messages"]]
    assert len(first["messages"]) == (4 if limit == 500 else 5)
    assert first["messages"][-1] == {"role": "assistant", "content": "a" * 50}


def test_a_transcript_without_room_for_an_answer_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "TRANSCRIPT_LIMIT", 30)
    paths = LevelPaths(tmp_path)
    task = paths.task("a")
    task.root.mkdir(parents=True)
    Trajectory({}, [{"role": "assistant", "content": "x" * 50}]).write(task.trajectory)
    assert not quality.write_transcript(paths, tmp_path / "text", None)
