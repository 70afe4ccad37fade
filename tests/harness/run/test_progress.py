"""The figures behind the display, its pace and its picture. The clock is scripted."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from test_store import ROW

from harness.agent.model import Usage
from harness.run.progress import Progress, format_seconds
from harness.run.tally import Tally


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_the_pace_of_each_level() -> None:
    clock = Clock()
    tally = Tally({"bf16": 4, "int4": 4}, [replace(ROW, level="bf16")], clock=clock)
    assert (tally.done, tally.left()) == (1, None)
    tally.change("bf16", "agents", 1)
    clock.now += 10
    tally.change("bf16", "agents", -1)
    tally.finish(replace(ROW, level="bf16"))
    clock.now += 1000  # nobody is at work
    assert tally.left() == 2 * 10 + 4 * 10
    tally.change("int4", "tests", 1)
    clock.now += 30
    tally.finish(ROW)
    assert tally.left() == 2 * 10 + 3 * 30
    two = Tally({"int4": 3}, levels_at_once=2, clock=clock)
    two.change("int4", "agents", 2)
    clock.now += 8
    two.levels["int4"].usage += Usage(100, 40, 75)
    two.finish(ROW)
    assert (two.left(), two.rate("int4"), two.levels["int4"].cached_share) == (8, 5.0, 0.75)


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_display_shows_outcomes_rates_cache_disk_and_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    tally, stream = Tally({"bf16": 2, "int4": 2}, clock=clock), Terminal()
    progress = Progress(tally, tmp_path, stream, describe_images=lambda: "12 GiB of 120 GiB")
    with progress.at_work("int4", "agents"):
        progress.spend("int4", Usage(1000, 50, 900))
        clock.now += 10
        progress.note("int4: starting the server again")
        progress.finish(replace(ROW, outcome="unresolved"))
    progress.close()
    shown = stream.getvalue()
    for part in ("1/4 tasks", "about 30 s left", "no apply", "5.0", "90%", "GiB free", "12 GiB of 120 GiB", "again"):
        assert part in shown


def test_plain_lines_elsewhere(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = Progress(Tally({"int4": 2}, clock=Clock()), tmp_path, stream)
    progress.note("waiting")
    progress.finish(ROW)
    assert stream.getvalue().splitlines()[0] == "waiting"
    assert "[1/2] int4 a__b-1 #0: resolved, 3 steps, 2 s; 0.0 tok/s" in stream.getvalue()
