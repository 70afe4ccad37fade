"""What is noted of a level beside its tasks."""

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


@pytest.mark.parametrize("limit", [40, 10_000])
def test_transcripts_share_the_limit(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(quality, "TRANSCRIPT_LIMIT", limit)
    paths = LevelPaths(tmp_path)
    assert not quality.write_transcript(paths, tmp_path / "text")
    for name in ("a", "b"):
        call = {"function": {"name": "bash", "arguments": "{}"}}
        messages = [
            {"role": "user", "content": name * 50},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        task = paths.task(name)
        task.root.mkdir(parents=True)
        Trajectory({}, messages).write(task.trajectory)
    assert quality.write_transcript(paths, tmp_path / "text")
    text = (tmp_path / "text").read_text()
    assert text.count("a" * 20) == text.count("b" * 20) >= 1
    assert len(text) <= limit + 2
    assert ('"name": "bash"' in text) == (limit > 40)
