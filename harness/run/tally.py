"""How far a run is: counts, rates and the time it still takes, per level and in all."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.agent.model import Usage
from harness.run.rows import TaskRow


@dataclass
class LevelTally:
    """One level: tasks in all and done, ends by outcome, tokens of this session, and what is at work now."""

    total: int
    done: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    agents: int = 0
    tests: int = 0
    finished: int = 0
    seconds: float = 0.0

    @property
    def cached_share(self) -> float | None:
        """Share of the prompt tokens of this session that the server did not compute again."""
        return self.usage.cached_tokens / self.usage.prompt_tokens if self.usage.prompt_tokens else None


class Tally:
    """The figures behind the display. `finished` and `seconds` count this session only: they give the pace."""

    def __init__(
        self,
        totals: Mapping[str, int],
        rows: Sequence[TaskRow] = (),
        levels_at_once: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Tasks per level, and the rows that earlier sessions finished. `clock` is in seconds."""
        self.levels = {name: LevelTally(total) for name, total in totals.items()}
        self.notes: deque[str] = deque(maxlen=5)
        self._at_once, self._clock = levels_at_once, clock
        self._seen = self.start = clock()
        for row in rows:
            self._count(row)

    @property
    def total(self) -> int:
        """Tasks of the run."""
        return sum(level.total for level in self.levels.values())

    @property
    def done(self) -> int:
        """Tasks that have their row."""
        return sum(level.done for level in self.levels.values())

    def change(self, level: str, stage: str, by: int) -> None:
        """So many more (or fewer) tasks of `level` are at work in `stage`, agents or tests."""
        self._pass_time()
        tally = self.levels[level]
        if stage == "agents":
            tally.agents += by
        else:
            tally.tests += by

    def finish(self, row: TaskRow) -> None:
        """A task is done."""
        self._pass_time()
        self._count(row)
        self.levels[row.level].finished += 1

    def rate(self, level: str) -> float:
        """Completion tokens per second in which the level was at work in this session."""
        self._pass_time()
        tally = self.levels[level]
        return tally.usage.completion_tokens / tally.seconds if tally.seconds > 0 else 0.0

    def left(self) -> float | None:
        """Seconds until the run is done, from the pace of each level so far; None while no task has been finished.

        A level that has finished none yet is taken to be as quick as the others together.
        """
        self._pass_time()
        finished = sum(level.finished for level in self.levels.values())
        if not finished:
            return None
        common = sum(level.seconds for level in self.levels.values()) / finished
        paces = (
            (level.total - level.done, level.seconds / level.finished if level.finished else common)
            for level in self.levels.values()
        )
        return sum(open_tasks * pace for open_tasks, pace in paces) / self._at_once

    def _count(self, row: TaskRow) -> None:
        level = self.levels[row.level]
        level.done += 1
        level.outcomes[row.outcome] += 1

    def _pass_time(self) -> None:
        """Charge the time since the last change to the levels that were at work in it."""
        now = self._clock()
        for level in self.levels.values():
            if level.agents or level.tests:
                level.seconds += now - self._seen
        self._seen = now
