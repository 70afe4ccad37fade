"""Seeds that hang, take all memory or end their process cost themselves, and not the run."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from threading import Event
from typing import Any

import pytest

from nano import makers
from nano.makers import MEMORY, Makers, limit_memory
from nano.packing import Failures

KILLED, GREEDY = (37, 70), 41


def fragile(seed: int, part: str) -> Any:
    """In place of an episode, its seed."""
    if seed in KILLED:
        os._exit(9)
    return len(bytearray(8 << 30)) if seed == GREEDY else (seed, part)


def forked(workers: int) -> Executor:
    """Processes that have this one's stand-ins."""
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(workers, mp_context=fork, initializer=limit_memory, initargs=(MEMORY,))


def test_seeds_that_end_their_process_or_take_too_much_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makers, "make_episode", fragile)
    found = Makers(2, forked)
    try:
        made = list(found.results("near", 0, 250))
    finally:
        found.close()
    wanted = [(seed, "near") for seed in range(250) if seed not in (*KILLED, GREEDY)]
    assert [episode for episodes, _ in made for episode in episodes] == wanted
    assert [len(episodes) + len(reasons) for episodes, reasons in made] == [32] * 7 + [26]
    assert [reason for _, reasons in made for reason in reasons] == [
        "near seed 37: it ended the process that made it",
        "near seed 41: MemoryError: ",
        "near seed 70: it ended the process that made it",
    ]
    failures = Failures()
    for episodes, reasons in made:
        failures.add(len(episodes) + len(reasons), reasons)
    assert (failures.tried, failures.failed) == (250, 3)


def test_the_limit_is_of_what_is_taken_beyond_now() -> None:
    script = (
        "from nano.makers import limit_memory; limit_memory(300 << 20); len(bytearray(100 << 20));"
        "len(bytearray(400 << 20))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.splitlines()[-1] == "MemoryError"


def test_a_generator_that_hangs_costs_its_seeds_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = Event()

    def sometimes(seed: int, _part: str) -> Any:
        if seed == 32:
            blocked.wait()
        return seed

    monkeypatch.setattr(makers, "make_episode", sometimes)
    with ThreadPoolExecutor(2) as executor:
        results = Makers(1, lambda _: executor).results("train", 0)
        assert next(results)[0] == list(range(32))
        monkeypatch.setattr(makers, "PATIENCE", 0.05)
        episodes, reasons = next(results)
        assert (episodes, len(reasons), reasons[0]) == ([], 32, "train seeds from 32: nothing after 0.05 s")
        monkeypatch.setattr(makers, "PATIENCE", 30.0)
        assert next(results)[0] == list(range(64, 96))
        blocked.set()


def test_the_same_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makers, "make_episode", lambda seed, _part: seed)
    assert [len(episodes) for episodes, _ in islice(Makers(0).results("train", 5), 3)] == [32] * 3
    assert [episodes for episodes, _ in Makers(0).results("train", 5, 8)] == [[5, 6, 7]]
