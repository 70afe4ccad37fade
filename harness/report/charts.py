"""Pictures of a study beyond the levels' own: differences, repositories, effort, divergence, outcomes, rubrics.

Each function gives a figure whose title states the finding, or None where nothing of its kind was measured.
"""

from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from harness.report.compare import Comparison, format_points
from harness.report.published import load_rubrics
from harness.report.rubric_scores import read_rubric_scores
from harness.report.study import Study
from harness.run.outcome import Outcome

MARKERS = "osD^vPX"
_TITLE_WIDTH = 86
_OUTCOMES = {
    Outcome.RESOLVED: ("009E73", ""),
    Outcome.UNRESOLVED: ("BBBBBB", ""),
    Outcome.EMPTY_PATCH: ("E69F00", "//"),
    Outcome.PATCH_FAILED: ("CC79A7", "xx"),
    Outcome.WALL_CLOCK: ("56B4E9", ".."),
    Outcome.INFRA_ERROR: ("D55E00", "\\\\"),
}
_DARK_CELL = 45


def start_figure(study: Study, title: str, height: float = 4.6) -> Figure:
    """An empty figure under `title`, which says SIMULATED first where the data are."""
    figure = Figure(figsize=(9.6, height))
    FigureCanvasAgg(figure)
    if study.run.is_simulated:
        title = f"SIMULATED DATA. {title}"
    figure.suptitle("\n".join(wrap(title, _TITLE_WIDTH)), x=0.01, ha="left")
    return figure


def draw_differences(study: Study) -> Figure | None:
    """Forest plot: each level's paired difference with its 95% interval, over the band of equivalence."""
    if not study.comparisons:
        return None
    base, margin = study.comparisons[0].baseline.level, 100 * study.margin
    figure = start_figure(study, _state_differences(study.comparisons), 2.4 + 0.55 * len(study.comparisons))
    panel = figure.subplots()
    panel.axvspan(-margin, margin, color="#E3EEF6", zorder=0, label=f"equivalence: within ±{margin:g} points")
    panel.axvline(0, color="#333333", linewidth=1)
    for row, one in enumerate(study.comparisons):
        low, high = (100 * end for end in one.paired.t_interval)
        value = 100 * one.paired.difference
        colour = f"C{_index(study, one.other.level)}"
        panel.errorbar(
            value, row, xerr=[[value - low], [high - value]], fmt=MARKERS[_index(study, one.other.level)],
            color=colour, capsize=4, zorder=3
        )  # fmt: skip
    panel.set_yticks(range(len(study.comparisons)), [one.other.label for one in study.comparisons])
    panel.set_ylim(len(study.comparisons) - 0.4, -0.6)
    right = panel.secondary_yaxis("right")
    texts = ["\n".join(wrap(one.verdict.text, 30)) for one in study.comparisons]
    right.set_yticks(range(len(study.comparisons)), texts)
    right.spines["right"].set_visible(False)
    right.tick_params(length=0)
    panel.set_xlabel(f"difference in solved instances from {base} (percentage points, 95% t interval)")
    figure.legend(loc="outside lower left", fontsize=9)
    return figure


def draw_repositories(study: Study) -> Figure | None:
    """Heatmap: solved share per repository and level, largest repository first."""
    if not study.arms:
        return None
    frame = pd.concat([arm.answers.assign(arm=arm.label) for arm in study.arms])
    shares = 100 * frame.groupby(["repo", "arm", "instance_id"])["resolved"].mean().groupby(["repo", "arm"]).mean()
    table = shares.unstack("arm")[[arm.label for arm in study.arms]]
    counts = frame.groupby("repo")["instance_id"].nunique().sort_values(ascending=False, kind="stable")
    table = table.loc[counts.index]
    figure = start_figure(study, _state_repositories(table, counts), 1.7 + 0.36 * len(table))
    panel = figure.subplots()
    image = panel.imshow(table.to_numpy(), cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if not np.isnan(value):
            colour = "white" if value < _DARK_CELL else "black"
            panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9, color=colour)
    panel.grid(visible=False)
    panel.set_xticks(range(len(table.columns)), list(table.columns))
    panel.set_yticks(range(len(table)), [f"{name} ({counts[name]})" for name in table.index])
    panel.set_ylabel("repository (instances)")
    figure.colorbar(image, ax=panel, label="solved (%)")
    return figure


def draw_effort(study: Study) -> Figure | None:
    """Share of tasks solved with at most so many tokens, per level: a budget's yield."""
    if not study.arms or not study.scores["resolved"].any():
        return None
    curves = {}
    for arm in study.arms:
        answers = arm.answers
        spent = (answers["prompt_tokens"] + answers["completion_tokens"]).to_numpy(np.float64)
        curves[arm.label] = (np.sort(spent[answers["resolved"].to_numpy(bool)]), len(answers))
    half = {label: spent[(len(spent) - 1) // 2] for label, (spent, _) in curves.items() if len(spent)}
    title = "Half of what each level solves is solved within " + ", ".join(
        f"{_tokens(value)} ({label})" for label, value in half.items()
    )
    figure = start_figure(study, f"{title} tokens a task.")
    panel = figure.subplots()
    most = max(spent[-1] for spent, _ in curves.values() if len(spent))
    for index, (label, (spent, total)) in enumerate(curves.items()):
        ends = np.append(spent, most)
        solved = np.append(100 * np.arange(1, len(spent) + 1) / total, 100 * len(spent) / total)
        style = ("-", "--", "-.", ":")[index % 4]
        panel.step(ends, solved, where="post", color=f"C{index % 7}", linestyle=style, label=label)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _tokens(count)))
    panel.set_ylim(0, None)
    panel.set_xlabel("tokens spent on a task (prompt + completion, those from the cache included)")
    panel.set_ylabel("tasks solved within (%)")
    panel.legend(loc="upper left")
    return figure


def draw_divergence(study: Study) -> Figure | None:
    """Score against mean KLD from the baseline's predictions, where two levels have one."""
    known = study.scores[study.scores["kld_mean"].notna() & (study.scores["answers"] > 0)]
    if len(known) < 2:
        return None
    order = known.sort_values("kld_mean")
    farthest, best = order.iloc[-1], order.iloc[0]
    gap = 100 * (farthest["score"] - best["score"])
    title = (
        f"{farthest['level']} diverges most ({farthest['kld_mean']:.3f} nats a token) and solves "
        f"{abs(gap):.1f} points {'fewer' if gap < 0 else 'more'} than {best['level']}."
    )
    figure = start_figure(study, title)
    panel = figure.subplots()
    for index, row in order.iterrows():
        value, low, high = (100 * row[key] for key in ("score", "low", "high"))
        number = int(str(index))
        panel.errorbar(
            row["kld_mean"], value, yerr=[[max(0, value - low)], [max(0, high - value)]], capsize=4,
            fmt=MARKERS[number % 7], color=f"C{number % 7}", label=f"{row['level']}: {row['kld_mean']:.4f}"
        )  # fmt: skip
    panel.set_xlabel("mean Kullback-Leibler divergence from the baseline (nats a token, same text)")
    panel.set_ylabel("instances solved (%)")
    panel.legend(title="level: divergence", loc="best")
    return figure


def draw_outcomes(study: Study) -> Figure | None:
    """How the tasks of each level ended, as shares of all tasks."""
    levels = study.run.levels
    counts = study.run.rows.groupby(["level", "outcome"]).size().unstack(fill_value=0).loc[levels]
    shares = 100 * counts.div(counts.sum(axis=1), axis=0)
    failed = shares[[name for name in ("wall_clock", "infra_error") if name in shares]].sum(axis=1)
    empty = shares["empty_patch"] if "empty_patch" in shares else 0 * failed
    title = (
        f"Empty patches: {_range(empty)} of tasks; ended by the machine: {_range(failed)}; the rest is solved or wrong."
    )
    figure = start_figure(study, title, 2.0 + 0.5 * len(levels))
    panel = figure.subplots()
    left = np.zeros(len(levels))
    for outcome, (colour, hatch) in _OUTCOMES.items():
        if outcome not in shares:
            continue
        width = shares[outcome].to_numpy()
        name = outcome.replace("_", " ")
        panel.barh(levels, width, left=left, color=f"#{colour}", hatch=hatch, edgecolor="white", label=name)
        for row, (start, size) in enumerate(zip(left, width, strict=True)):
            if size >= 5:
                panel.text(start + size / 2, row, f"{size:.0f}", ha="center", va="center", fontsize=9)
        left = left + width
    panel.invert_yaxis()
    panel.grid(visible=False)
    panel.set_xlim(0, 100)
    panel.set_xlabel("share of tasks (%)")
    figure.legend(loc="outside lower center", ncols=6, fontsize=9)
    return figure


def draw_rubrics(study: Study) -> Figure | None:
    """Small multiples: scores of every answer per rubric task and level, beside the published score."""
    scores = read_rubric_scores(study.run.paths.root)
    if scores.empty:
        return None
    tasks, levels = sorted(scores["task"].unique()), _order(study, scores)
    means = scores.groupby("level")["score"].mean()
    title = f"Rubric tasks, mean of 10: {', '.join(f'{level} {means[level]:.1f}' for level in levels)}."
    figure = start_figure(study, title, 3.4)
    published = load_rubrics()
    panels = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
    for panel, task in zip(panels, tasks, strict=True):
        _draw_rubric(panel, scores[scores["task"] == task], levels)
        for one in published:
            if task in one.scores:
                panel.axhline(one.scores[task], color="#333333", linestyle=":", linewidth=1.2)
        panel.set_title("\n".join(wrap(task.replace("-", " "), 14)), fontsize=10)
    panels[0].set_ylabel("score (0 to 10)")
    note = "bar: mean; dot: an answer"
    if published:
        note += f"; dotted line: {published[0].model} in {published[0].source}"
    figure.supxlabel(note, fontsize=9)
    return figure


def _order(study: Study, scores: pd.DataFrame) -> list[str]:
    """Levels with rubric scores: those of the run in its order, then any others."""
    found = list(dict.fromkeys(scores["level"]))
    return sorted(found, key=lambda level: study.run.levels.index(level) if level in study.run.levels else len(found))


def _draw_rubric(panel: Axes, scores: pd.DataFrame, levels: list[str]) -> None:
    for index, level in enumerate(levels):
        values = scores.loc[scores["level"] == level, "score"].to_numpy(np.float64)
        if len(values):
            panel.bar(index, values.mean(), color=f"C{index % 7}", alpha=0.55, width=0.7)
            places = index + np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [index]
            panel.plot(places, values, "o", color="#222222", markersize=3, linestyle="none")
    panel.set_xticks(range(len(levels)), levels, rotation=45, ha="right")
    panel.set_ylim(0, 10.3)


def _state_differences(comparisons: list[Comparison]) -> str:
    base = comparisons[0].baseline.level
    parts = [f"{one.other.label} {format_points(one.paired.difference)}" for one in comparisons]
    settled = [one.other.label for one in comparisons if one.verdict.word in ("worse", "better")]
    end = f"; told apart from {base}: {', '.join(settled)}" if settled else f"; none can be told apart from {base}"
    return f"Points against {base}: {', '.join(parts)}{end}."


def _state_repositories(table: pd.DataFrame, counts: "pd.Series[int]") -> str:
    large = table[counts >= 8]
    if len(large) < 2:
        return "Solved per repository (few instances each)."
    mean = large.mean(axis=1)
    return (
        f"Of repositories with 8 instances or more, {mean.idxmax()} is solved most ({mean.max():.0f}%) and "
        f"{mean.idxmin()} least ({mean.min():.0f}%)."
    )


def _range(shares: "pd.Series[float]") -> str:
    low, high = shares.min(), shares.max()
    return f"{low:.1f}%" if round(low, 1) == round(high, 1) else f"{low:.1f} to {high:.1f}%"


def _tokens(count: float) -> str:
    return f"{count / 1e6:.2g}M" if count >= 1e6 else f"{count / 1e3:.0f}k"


def _index(study: Study, level: str) -> int:
    levels = list(study.scores["level"])
    return levels.index(level) % len(MARKERS)
