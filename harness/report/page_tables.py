"""Tables that only the report page shows: repeats, parts of the data, and figures of others beside ours."""

from typing import Any

from harness.report.arms import Run
from harness.report.compare import Comparison, format_points
from harness.report.published import load_rubrics, load_scores
from harness.report.reliability import pass_at_k, pass_hat_k
from harness.report.rubric_scores import read_rubric_scores
from harness.report.sensitivity import Subset
from harness.report.study import Study
from harness.report.tables import UNKNOWN, format_share

Cells = list[tuple[str, ...]]

_VERIFIED = "verified"


def reliability_cells(study: Study) -> Cells:
    """pass@k and pass^k per level for each number of repeats, in percent; none where nothing was repeated."""
    repeats = max((int(arm.sample().repeats.max()) for arm in study.arms), default=1)
    if repeats < 2:
        return []
    counts = range(1, repeats + 1)
    header = ("level", *(f"pass@{k}" for k in counts), *(f"pass^{k}" for k in counts if k > 1))
    lines: Cells = [header]
    for arm in study.arms:
        sample = arm.sample()
        values = [pass_at_k(sample, k) for k in counts] + [pass_hat_k(sample, k) for k in counts if k > 1]
        lines.append((arm.label, *(UNKNOWN if value != value else format_share(value) for value in values)))
    return lines


def subset_cells(comparison: Comparison) -> list[dict[str, Any]]:
    """Three tables of one comparison: other choices, by difficulty, by repository; differences in points."""
    details = comparison.details
    parts = (
        ("What the difference hangs on", details.choices),
        ("By difficulty", details.difficulties),
        ("By repository", details.repositories),
    )
    base, other = comparison.baseline.label, comparison.other.label
    header = ("tasks", "n", f"{base} %", f"{other} %", "difference", "95% interval")
    return [{"name": name, "cells": [header, *map(_format_subset, subsets)]} for name, subsets in parts]


def published_table(study: Study) -> dict[str, Any] | None:
    """Our scores on SWE-bench Verified above those that others published; None for other datasets."""
    dataset, config = str(study.run.record["dataset"]["name"]), study.run.record["config"]
    published = load_scores()
    if not published or not (_VERIFIED in dataset.lower() or study.run.is_simulated):
        return None
    ours = [
        (
            f"{config.get('model') or 'served model'} (this run)",
            format_share(arm["score"]),
            f"sweq, profile {config['agent']['profile']}",
            str(arm["level"]),
            str(config["repeats"]),
            f"this run, {arm['instances']} instances{', SIMULATED' if study.run.is_simulated else ''}",
            str(study.run.record.get("started", ""))[:10],
        )
        for arm in study.scores.to_dict("records")
    ]
    header = ("model", "solved %", "scaffold", "level", "repeats", "source", "date")
    theirs = [
        (one.model, f"{one.score:.1f}", one.scaffold, one.level, one.repeats, one.source, one.date) for one in published
    ]
    note = (
        "Scaffold, level, sampling, budgets and repeats differ from line to line; a gap between two lines of different "
        "scaffolds says nothing of the models alone."
    )
    return {"cells": [header, *ours, *theirs], "note": note}


def rubric_table(run: Run) -> dict[str, Any] | None:
    """Mean rubric scores per level and task, with published ones below; None where the run has no rubric tasks."""
    scores = read_rubric_scores(run.paths.root)
    if scores.empty:
        return None
    tasks = sorted(scores["task"].unique())
    means = scores.groupby(["level", "task"])["score"].agg(["mean", "count"])
    lines: Cells = [("level", *tasks, "mean")]
    for level in dict.fromkeys(scores["level"]):
        found = [means.loc[(level, task)] if (level, task) in means.index else None for task in tasks]
        cells = [UNKNOWN if one is None else f"{one['mean']:.2f} (n={one['count']:.0f})" for one in found]
        known = [one["mean"] for one in found if one is not None]
        lines.append((str(level), *cells, f"{sum(known) / len(known):.2f}"))
    notes = []
    for published in load_rubrics():
        known = [published.scores[task] for task in tasks if task in published.scores]
        cells = [f"{published.scores[task]:.2f}" if task in published.scores else UNKNOWN for task in tasks]
        lines.append((f"{published.model} (published)", *cells, f"{sum(known) / len(known):.2f}" if known else UNKNOWN))
        notes.append(f"Published: {published.source}, {published.date}. What differs: {published.differs}.")
    return {"cells": lines, "notes": notes}


def _format_subset(subset: Subset) -> tuple[str, ...]:
    low, high = (format_points(end) for end in subset.interval)
    return (
        subset.name,
        str(subset.n),
        format_share(subset.base),
        format_share(subset.other),
        format_points(subset.difference),
        f"[{low}, {high}]",
    )
