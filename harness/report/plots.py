"""The pictures of a run, first of all what each level solves for the memory that its weights take."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.arms import load_run
from harness.report.charts import (
    MARKERS,
    draw_differences,
    draw_divergence,
    draw_effort,
    draw_outcomes,
    draw_repositories,
    draw_rubrics,
    start_figure,
)
from harness.report.study import Study, examine, state_finding
from harness.report.tables import format_bytes

_CROWDED = 0.2
_HIGH = 80
_GIBI, _MEBI = 2**30, 2**20


def write_plots(run_dir: Path) -> list[Path]:
    """Draw every picture of a run that its data allow, as PNG and SVG beside `levels.png`; returns their paths."""
    return draw_plots(examine(load_run(run_dir)))


def draw_plots(study: Study) -> list[Path]:
    """`write_plots` of a study: each PNG followed by its SVG, in the order of `CHARTS`."""
    written = []
    with plot_style():
        for name, draw in CHARTS.items():
            png = study.run.paths.plot.with_name(f"{name}.png")
            figure = draw(study)
            if figure is None:
                png.unlink(missing_ok=True)
                png.with_suffix(".svg").unlink(missing_ok=True)
                continue
            figure.savefig(png, metadata={"Software": None})
            figure.savefig(png.with_suffix(".svg"), metadata={"Date": None})
            written += [png, png.with_suffix(".svg")]
    return written


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw and save figures in this context to give them the look of `style.mplstyle`."""
    style = resources.files("harness.report").joinpath("style.mplstyle")
    with resources.as_file(style) as path, mpl.style.context(path):
        yield


def draw_levels(study: Study) -> Figure:
    """Left: score against weights in memory with 95% intervals. Right: perplexity per level, where it was measured."""
    scores = study.scores
    figure = start_figure(study, state_finding(study))
    measured = bool(scores["perplexity"].notna().any())
    panels = figure.subplots(1, 2, width_ratios=[3, 2]) if measured else [figure.subplots()]
    _draw_scores(panels[0], scores)
    if measured:
        _draw_perplexity(panels[1], scores)
    return figure


CHARTS: dict[str, Callable[[Study], Figure | None]] = {
    "levels": draw_levels,
    "differences": draw_differences,
    "outcomes": draw_outcomes,
    "effort": draw_effort,
    "repositories": draw_repositories,
    "divergence": draw_divergence,
    "rubrics": draw_rubrics,
}


def _draw_scores(panel: Axes, scores: pd.DataFrame) -> None:
    known = bool(scores["weights_bytes"].notna().all())
    unit, name = (_GIBI, "GiB") if known and scores["weights_bytes"].max() >= _GIBI else (_MEBI, "MiB")
    places = list(scores["weights_bytes"] / unit) if known else [float(index) for index in range(len(scores))]
    low, high = min(places), max(places)
    room = (high - low) * 0.25 or max(abs(high) * 0.2, 0.5)
    sides = _label_sides(places, _CROWDED * (high + room - (0 if known else low)))
    if known:
        _draw_frontier(panel, places, scores)
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


def _draw_frontier(panel: Axes, places: Sequence[float], scores: pd.DataFrame) -> None:
    """The Pareto frontier of the point estimates: what a given size solves at most."""
    best, steps = -1.0, []
    for place, value in sorted(zip(places, 100 * scores["score"], strict=True), key=lambda pair: (pair[0], -pair[1])):
        if value > best:
            best = value
            steps.append((place, value))
    if len(steps) > 1:
        panel.step(*zip(*steps, strict=True), where="post", color="#999999", linestyle="--", linewidth=1.2, zorder=1,
                   label="Pareto frontier")  # fmt: skip
        panel.legend(loc="lower right", fontsize=9)


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
    return MARKERS[index % len(MARKERS)]
