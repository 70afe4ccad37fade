"""What a person sees while a run works: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from typing import TextIO

from tqdm import tqdm

from harness.run.rows import TaskRow


class Progress:
    """Counts of outcomes and tokens per second. `step` may be called from any thread, the rest from one."""

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        """Of `total` tasks `done` were finished by an earlier process."""
        self._stream = stream or sys.stderr
        self._total, self._done = total, done
        self._counts: Counter[str] = Counter()
        self._tokens = 0
        self._start = time.monotonic()
        self._bar = (
            tqdm(total=total, initial=done, unit="task", file=self._stream, dynamic_ncols=True)
            if self._stream.isatty()
            else None
        )

    def note(self, text: str) -> None:
        """One line of its own: a level's server starts, a task is tried again."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def step(self, completion_tokens: int) -> None:
        """An agent got an answer of so many tokens."""
        self._tokens += completion_tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._summary())

    def finish(self, row: TaskRow) -> None:
        """A task is done."""
        self._done += 1
        self._counts[row.outcome] += 1
        if self._bar is None:
            self.note(f"[{self._done}/{self._total}] {_describe(row)}; {self._summary()}")
            return
        self._bar.set_postfix_str(self._summary(), refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def _summary(self) -> str:
        rate = self._tokens / max(time.monotonic() - self._start, 1e-9)
        counts = [f"{count} {outcome}" for outcome, count in sorted(self._counts.items())]
        return ", ".join([*counts, f"{rate:.1f} tok/s"])


def _describe(row: TaskRow) -> str:
    limit = f" ({row.limit})" if row.limit != "none" else ""
    reason = f" [{row.infra_reason}]" if row.infra_reason else ""
    return (
        f"{row.level} {row.instance_id} #{row.repeat}: {row.outcome}{limit}{reason}, "
        f"{row.steps} steps, {row.seconds_agent:.0f} s"
    )
