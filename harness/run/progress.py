"""What a person sees while a run works: a live display on a terminal, plain lines elsewhere."""

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.agent.model import Usage
from harness.run.outcome import Outcome
from harness.run.rows import TaskRow
from harness.run.tally import Tally

_REFRESH_PER_SECOND = 2
_BAR_WIDTH = 30
_SHORT = {
    Outcome.RESOLVED: "resolved",
    Outcome.UNRESOLVED: "unresolved",
    Outcome.EMPTY_PATCH: "empty",
    Outcome.PATCH_FAILED: "no apply",
    Outcome.WALL_CLOCK: "clock",
    Outcome.INFRA_ERROR: "infra",
}
"""Columns of outcomes, all of them."""


class Progress:
    """Reports a `Tally`. `spend` and `note` may be called from any thread, the rest from one.

    `folder` is where the run's files go; `describe_images`, if any, gives one line on the images' disk budget.
    """

    def __init__(
        self,
        tally: Tally,
        folder: Path,
        stream: TextIO | None = None,
        describe_images: Callable[[], str] | None = None,
    ) -> None:
        self._tally, self._folder, self.describe_images = tally, folder, describe_images
        self._stream = stream or sys.stderr
        self._lock = threading.RLock()
        self._live: Live | None = None
        if self._stream.isatty():
            console = Console(file=self._stream)
            self._live = Live(
                console=console, get_renderable=self._render, refresh_per_second=_REFRESH_PER_SECOND, transient=False
            )
            self._live.start()

    def note(self, text: str) -> None:
        """One line of its own: a level's server starts, a task is tried again."""
        if self._live is None:
            print(text, file=self._stream, flush=True)
            return
        with self._lock:
            self._tally.notes.append(text)

    def spend(self, level: str, usage: Usage) -> None:
        """An agent got an answer that took so many tokens."""
        with self._lock:
            self._tally.levels[level].usage += usage

    @contextmanager
    def at_work(self, level: str, stage: str) -> Iterator[None]:
        """A task of `level` is in `stage`: agents or tests."""
        with self._lock:
            self._tally.change(level, stage, 1)
        try:
            yield
        finally:
            with self._lock:
                self._tally.change(level, stage, -1)

    def finish(self, row: TaskRow) -> None:
        """A task is done."""
        with self._lock:
            self._tally.finish(row)
            line = f"[{self._tally.done}/{self._tally.total}] {_describe(row)}; {self._summarise(row.level)}"
        self.note(line)

    def close(self) -> None:
        """Leave the terminal as it was, with the last figures standing."""
        if self._live is not None:
            self._live.stop()

    def _summarise(self, level: str) -> str:
        left = self._tally.left()
        rate = f"{self._tally.rate(level):.1f} tok/s"
        return rate if left is None else f"{rate}, {format_seconds(left)} left"

    def _render(self) -> RenderableType:
        with self._lock:
            lines = [Text(note, style="dim", no_wrap=True, overflow="ellipsis") for note in self._tally.notes]
            return Group(self._render_bar(), self._render_levels(), self._render_disk(), *lines)

    def _render_bar(self) -> RenderableType:
        tally = self._tally
        left = tally.left()
        remaining = "measuring the pace" if left is None else f"about {format_seconds(left)} left"
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            ProgressBar(total=max(tally.total, 1), completed=tally.done, width=_BAR_WIDTH),
            f"{tally.done}/{tally.total} tasks",
            remaining if tally.done < tally.total else "done",
        )
        return grid

    def _render_levels(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column("level")
        for header in ("done", *_SHORT.values(), "agents", "tests", "tok/s", "cached"):
            table.add_column(header, justify="right")
        for name, level in self._tally.levels.items():
            shown = [str(level.outcomes[outcome] or "·") for outcome in _SHORT]
            share = level.cached_share
            cached = "·" if share is None else f"{100 * share:.0f}%"
            rate = f"{self._tally.rate(name):.1f}"
            table.add_row(
                name, f"{level.done}/{level.total}", *shown, str(level.agents), str(level.tests), rate, cached
            )
        return table

    def _render_disk(self) -> Text:
        usage = shutil.disk_usage(self._folder)
        text = f"disk {usage.used / (1 << 30):.1f} GiB used, {usage.free / (1 << 30):.1f} GiB free"
        if self.describe_images is not None and (images := self.describe_images()):
            text += f"; images: {images}"
        return Text(text, style="dim")


def format_seconds(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `42 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _describe(row: TaskRow) -> str:
    limit = f" ({row.limit})" if row.limit != "none" else ""
    reason = f" [{row.infra_reason}]" if row.infra_reason else ""
    return (
        f"{row.level} {row.instance_id} #{row.repeat}: {row.outcome}{limit}{reason}, "
        f"{row.steps} steps, {row.seconds_agent:.0f} s"
    )
