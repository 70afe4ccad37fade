"""The picture of a run: what each level solves for the memory that its weights take."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.arms import Run, list_arms, load_run
from harness.report.compare import Comparison, compare_arms, find_baseline, format_points
from harness.report.tables import format_bytes, format_share, score_rows

DEFAULT_MARGIN = 0.02
WORDS = ("worse", "better", "equivalent", "inconclusive")
_CROWDED = 0.2
_HIGH = 80
_MARKERS = "osD^vPX"
_GIBI, _MEBI = 2**30, 2**20
_TITLE_WIDTH = 86


def write_plots(run_dir: Path) -> list[Path]:
    """Draw `levels.png` and `levels.svg` of a run; returns their paths, the PNG first."""
    run = load_run(run_dir)
    png = run.paths.plot
    svg = png.with_suffix(".svg")
    with plot_style():
        figure = draw_levels(run)
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw and save figures in this context to give them the look of `style.mplstyle`."""
    style = resources.files("harness.report").joinpath("style.mplstyle")
    with resources.as_file(style) as path, mpl.style.context(path):
        yield


def draw_levels(run: Run) -> Figure:
    """Left: score against weights in memory with 95% intervals. Right: perplexity per level, where it was measured."""
    scores = score_rows(run)
    figure = Figure()
    FigureCanvasAgg(figure)
    measured = bool(scores["perplexity"].notna().any())
    panels = figure.subplots(1, 2, width_ratios=[3, 2]) if measured else [figure.subplots()]
    _draw_scores(panels[0], scores)
    if measured:
        _draw_perplexity(panels[1], scores)
    title = state_finding(run)
    if run.is_simulated:
        title = f"SIMULATED DATA. {title}"
    figure.suptitle("\n".join(wrap(title, _TITLE_WIDTH)), x=0.01, ha="left")
    return figure


def state_finding(run: Run) -> str:
    """One sentence that says what the run found, for the plot's title and the top of the page."""
    scores = score_rows(run)
    if not scores["answers"].any():
        return "No task has ended in an answer yet."
    dataset, instances = run.record["dataset"]["name"], int(scores["instances"].max())
    if not scores["resolved"].any():
        highest = format_share(scores.loc[scores["answers"] > 0, "high"].max())
        return (
            f"No level solved any of {instances} instances of {dataset}: true rates up to {highest}% "
            "remain possible, and the levels cannot be told apart."
        )
    arms = [arm for arm in list_arms(run) if len(arm.answers)]
    if len(arms) == 1:
        return f"{arms[0].level} solves {format_share(scores['score'].max())}% of {instances} instances of {dataset}."
    comparisons = compare_arms(arms, find_baseline(arms), DEFAULT_MARGIN)
    groups = [[one for one in comparisons if one.verdict.word == word] for word in WORDS]
    return f"Against {comparisons[0].baseline.level}: {'; '.join(_state_group(group) for group in groups if group)}."


def _state_group(group: list[Comparison]) -> str:
    names = [f"{one.other.level} ({format_points(one.paired.difference)} points)" for one in group]
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    word = group[0].verdict.word
    margin = f" within ±{100 * group[0].paired.margin:g} points" if word == "equivalent" else ""
    return f"{text} {word}{margin}"


def _draw_scores(panel: Axes, scores: pd.DataFrame) -> None:
    known = bool(scores["weights_bytes"].notna().all())
    unit, name = (_GIBI, "GiB") if known and scores["weights_bytes"].max() >= _GIBI else (_MEBI, "MiB")
    places = list(scores["weights_bytes"] / unit) if known else [float(index) for index in range(len(scores))]
    low, high = min(places), max(places)
    room = (high - low) * 0.25 or max(abs(high) * 0.2, 0.5)
    sides = _label_sides(places, _CROWDED * (high + room - (0 if known else low)))
    for index, row in enumerate(scores.to_dict("records")):
        _draw_score(panel, index, places[index], sides[index], row)
    panel.set_xlim(0 if known else low - room, high + room)
    panel.set_ylim(0, min(104.0, max(5.0, 112 * scores["high"].max())))
    panel.set_ylabel("instances solved (%)")
    panel.set_title(f"Solved, 95% interval ({', '.join(dict.fromkeys(scores['method']))})")
    if known:
        panel.set_xlabel(f"weights in memory ({name})")
    else:
        panel.set_xticks(places, scores["level"])
        panel.set_xlabel("level (weights in memory unknown)")


def _label_sides(places: Sequence[float], crowded: float) -> list[int]:
    """1 to label a point on its right, -1 on its left, where its right neighbour is nearer than `crowded`."""
    sides = []
    for place in places:
        gaps = [other - place for other in places if other > place]
        sides.append(-1 if gaps and min(gaps) < crowded else 1)
    return sides


def _draw_score(panel: Axes, index: int, place: float, side: int, row: Mapping[Hashable, Any]) -> None:
    value, low, high = (100 * row[key] for key in ("score", "low", "high"))
    errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
    panel.errorbar(
        place, value, yerr=errors, fmt=_marker(index), color=f"C{index % 7}", capsize=4, clip_on=False, zorder=3
    )
    text = f"{row['level']}\n{row['resolved']}/{row['answers']}"
    panel.annotate(
        text,
        (place, value),
        xytext=(9 * side, -4 if value > _HIGH else 4),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="top" if value > _HIGH else "bottom",
        fontsize=9,
    )
    if row["resolved"] == 0:
        panel.annotate(
            f"≤ {high:.0f}%", (place, high), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9
        )


def _draw_perplexity(panel: Axes, scores: pd.DataFrame) -> None:
    for index, row in enumerate(scores.to_dict("records")):
        if pd.isna(row["perplexity"]):
            continue
        panel.plot(index, row["perplexity"], _marker(index), color=f"C{index % 7}", clip_on=False)
        panel.annotate(
            f"{row['perplexity']:.2f}",
            (index, row["perplexity"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    sizes = [format_bytes(size) for size in scores["weights_bytes"]]
    panel.set_xticks(
        range(len(scores)), [f"{level}\n{size}" for level, size in zip(scores["level"], sizes, strict=True)]
    )
    panel.set_xlim(-0.6, len(scores) - 0.4)
    panel.margins(y=0.25)
    panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.set_ylabel("perplexity (lower is better)")
    panel.set_title("Perplexity on the same text")


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]
