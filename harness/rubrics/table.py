"""What a rubric run shows: a table, a profile of checks, a picture, and `rubrics.json`."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from harness.errors import UserError
from harness.files import replace_file
from harness.report.plots import plot_style
from harness.rubrics.score import HIGHEST
from harness.rubrics.store import Scored, load_scores
from harness.rubrics.summary import LevelSummary, Published, load_published, profile, summarise

_DOTS = 0.12


def write_summary(run: Path, console: Console, *, checks: bool = False) -> list[Path]:
    """Print the table of a run (with `checks` the profile of every check), write `rubrics.json` and the picture.

    Returns the paths written. Raises `UserError` for a run without scores.
    """
    scored = load_scores(run)
    if not scored:
        raise UserError(f"{run}: holds no rubric scores; `sweq rubrics` makes some")
    levels, published = summarise(scored), load_published()
    console.print(score_table(levels, published))
    for note in _notes(levels, published):
        console.print(note, soft_wrap=True)
    if checks:
        console.print(profile_table(scored))
    document = {
        "levels": [asdict(level) for level in levels],
        "profile": [
            {"task": task, "kind": kind, "check": check, "level": level, "passed": passed, "of": of}
            for (task, kind, check), counts in sorted(profile(scored).items())
            for level, (passed, of) in counts.items()
        ],
        "published": [asdict(one) for one in published],
    }
    path = run / "rubrics.json"
    replace_file(path, json.dumps(_without_nan(document), indent=1).encode() + b"\n")
    return [path, *draw(run, levels, published)]


def score_table(levels: Sequence[LevelSummary], published: Sequence[Published]) -> Table:
    """One row per level, then the published rows."""
    names = sorted({task.task for level in levels for task in level.tasks})
    judged = any(not math.isnan(level.judged) for level in levels)
    heads = ["mean\n\\[95% CI]", "best\nof 2", "hidden", "infra", *(["with\njudge"] if judged else [])]
    table = Table("level", *(name.replace("-", "\n", 1) for name in names), *heads)
    for column in table.columns[1:]:
        column.justify = "right"
    for level in levels:
        means = {task.task: task for task in level.tasks}
        table.add_row(
            level.level,
            *(f"{means[name].mean:.2f}" if name in means and means[name].scores else "-" for name in names),
            f"{level.mean:.2f}\n\\[{level.low:.1f}, {level.high:.1f}]",
            f"{level.best:.2f}",
            f"{100 * level.hidden:.0f}%",
            str(sum(task.infra for task in level.tasks)),
            *([f"{level.judged:.2f}"] if judged else []),
        )
    for one in published:
        mean = sum(one.scores.values()) / len(one.scores)
        cells = [f"{one.scores[name]:.2f}" if name in one.scores else "-" for name in names]
        table.add_row(
            f"{one.model}\n(published)", *cells, f"{mean:.2f}", "-", "-", "-", *(["-"] if judged else []), style="dim"
        )
    return table


def profile_table(scored: Sequence[Scored]) -> Table:
    """How often each check passed at each level, of how many answers that it was applied to."""
    levels = list(dict.fromkeys(one.level for one in scored))
    table = Table("task", "kind", "check", *levels)
    for column in table.columns[3:]:
        column.justify = "right"
    for (task, kind, check), counts in sorted(profile(scored).items()):
        cells = [counts.get(level, (0, 0)) for level in levels]
        table.add_row(task, kind, check, *(f"{passed}/{of}" if of else "-" for passed, of in cells))
    return table


def draw(run: Path, levels: Sequence[LevelSummary], published: Sequence[Published]) -> list[Path]:
    """Small multiples, a panel per task: every answer a dot, the mean a bar, the published score a line."""
    names = sorted({task.task for level in levels for task in level.tasks})
    with plot_style():
        figure = Figure(figsize=(2.3 * len(names) + 0.8, 3.2 + 0.12 * len(levels)))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            _draw_task(panel, name, levels, published)
        panels[0].set_ylabel("score of 10")
        figure.suptitle(_say(levels), fontsize="medium")
        paths = [run / "rubrics.png", run / "rubrics.svg"]
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _draw_task(panel: Axes, name: str, levels: Sequence[LevelSummary], published: Sequence[Published]) -> None:
    for place, level in enumerate(levels):
        task = next((task for task in level.tasks if task.task == name), None)
        if task is None or not task.scores:
            continue
        count = len(task.scores)
        spread = [place + _DOTS * (2 * number / max(count - 1, 1) - 1) for number in range(count)]
        panel.plot(spread, sorted(task.scores), "o", markersize=3, alpha=0.6, color=f"C{place % 8}")
        panel.hlines(task.mean, place - 0.32, place + 0.32, color=f"C{place % 8}", linewidth=2.2)
        panel.annotate(f"{task.mean:.1f}", (place + 0.34, task.mean), fontsize="x-small", va="center")
    for one in published:
        if name in one.scores:
            panel.axhline(one.scores[name], linestyle=":", color="0.35", linewidth=1)
            panel.annotate("published", (-0.55, one.scores[name]), fontsize="xx-small", color="0.35", va="bottom")
    panel.set_title(name, fontsize="small")
    panel.set_xticks(range(len(levels)), [level.level for level in levels], rotation=30, ha="right")
    panel.set_xlim(-0.6, len(levels) - 0.2)
    panel.set_ylim(-0.4, HIGHEST + 0.4)


def _say(levels: Sequence[LevelSummary]) -> str:
    best = max(levels, key=lambda level: level.mean)
    if len(levels) == 1:
        bounds = f"95% {best.low:.1f} to {best.high:.1f}"
        return f"{best.level} scores {best.mean:.1f} of 10 over {len(best.tasks)} tasks, {bounds}"
    overlap = all(level.high >= best.low for level in levels)
    words = "no level stands apart" if overlap else "levels differ"
    return f"{best.level} scores highest with {best.mean:.1f} of 10; {words} (95% intervals by task)"


def _notes(levels: Sequence[LevelSummary], published: Sequence[Published]) -> list[str]:
    counts = sorted({len(task.scores) for level in levels for task in level.tasks})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    notes = [
        f"Means over {each} answers a task. Interval: bootstrap over tasks, then over their answers.",
        "Best of 2: expected best of two answers where the original rules allow two.",
        "Hidden: share of the checks that the prompt does not reveal.",
    ]
    notes += _judge_notes(levels)
    return notes + [f"{one.model}: {one.source}, {one.date}; {one.differs}." for one in published]


def _judge_notes(levels: Sequence[LevelSummary]) -> list[str]:
    """What a judge added, missed and preferred; nothing where none was asked."""
    if all(math.isnan(level.judged) for level in levels):
        return []
    notes = ["With judge: the mean with a calibrated judge's points; all other columns are what could be executed."]
    for level in levels:
        if missing := sum(task.unjudged for task in level.tasks):
            notes.append(f"{level.level}: {missing} answers have no verdict of the judge and are left out there.")
        for task in level.tasks:
            if task.pairs:
                said = ", ".join(f"{count} {outcome}" for outcome, count in task.pairs.items())
                notes.append(f"{level.level}, {task.task}: beside the baseline's answers {said}.")
    return notes


def _without_nan(value: object) -> object:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value
