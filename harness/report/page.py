"""One HTML file that holds a whole report and loads nothing.

All that a model wrote reaches the page as text: by the template's escaping, or in compressed chunks that the page's own
script puts into text nodes. The content security policy names that one script by its hash, so that no other can run.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from harness.errors import UserError
from harness.files import replace_file
from harness.report.arms import Arm, Run, find_arms, load_run
from harness.report.compare import HEADERS, Comparison, compare_arms, comparison_notes, find_baseline, format_comparison
from harness.report.guard import check_comparable
from harness.report.page_tables import published_table, reliability_cells, rubric_table, subset_cells
from harness.report.plots import draw_plots
from harness.report.study import DEFAULT_MARGIN, Study, examine, state_finding
from harness.report.tables import difficulty_cells, markdown_scores, quality_cells, score_cells, score_notes
from harness.report.task_chunks import CHUNK_BUDGET, Chunks, describe_task


def write_report(runs: list[Path], chunk_budget: int = CHUNK_BUDGET, allow: Sequence[str] = ()) -> Path:
    """Write `report.html` of `runs` into the first run's directory and return its path.

    Draws the plots anew. Several runs are compared with each other where the guard, or `allow`, accepts it; where not,
    the page says why. Raises `UserError` for what is no run directory.
    """
    loaded = [load_run(root) for root in runs]
    if not loaded:
        raise UserError("report: no run directory; name at least one folder that sweq eval wrote")
    arms = find_arms([str(root) for root in runs])
    chunks = Chunks(chunk_budget)
    index = _index_tasks(arms, chunks)
    script = _read("page.js")
    html = _template().render(
        title=", ".join(run.run_id for run in loaded),
        version=loaded[0].record.get("harness_version", ""),
        style=Markup(_read("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        across=_compare_runs(arms, allow) if len(loaded) > 1 else None,
        runs=[_describe_run(run, arms) for run in loaded],
        simulated=any(run.is_simulated for run in loaded),
        index=Markup(_embed(index)),
        chunks=chunks.texts,
        left_out=chunks.left_out,
    )
    path = loaded[0].paths.page
    replace_file(path, html.encode("utf-8", "replace"))
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_read("page.html"))


def _read(name: str) -> str:
    return resources.files("harness.report").joinpath(name).read_text("utf-8")


def _embed(content: Any) -> str:
    """JSON that may stand within a script element: no character of it can end the element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _index_tasks(arms: Sequence[Arm], chunks: Chunks) -> dict[str, Any]:
    """What the task table needs: labels of arms, and per instance and arm its tasks in the order of repeats.

    First repeats of all tasks go into chunks first, so that a page over its budget lacks later repeats.
    """
    instances: dict[str, dict[str, Any]] = {}
    entries = []
    for number, arm in enumerate(arms):
        for row in arm.tasks.to_dict("records"):
            found = instances.setdefault(
                row["instance_id"],
                {
                    "id": row["instance_id"],
                    "repo": row["repo"],
                    "difficulty": row["difficulty"],
                    "arms": [[] for _ in arms],
                },
            )
            entry = {
                "repeat": row["repeat"],
                "outcome": row["outcome"],
                "limit": row["limit"],
                "reason": row["infra_reason"],
                "steps": row["steps"],
                "tokens": row["prompt_tokens"] + row["completion_tokens"],
                "seconds": round(row["seconds_agent"], 1),
                "flags": row.get("flags") or "",
                "chunk": -1,
            }
            found["arms"][number].append(entry)
            entries.append((row["repeat"], arm, row["instance_id"], entry))
    for repeat, arm, instance_id, entry in sorted(entries, key=lambda one: one[0]):
        content = describe_task(arm, instance_id, repeat)
        if content is not None:
            entry["chunk"] = chunks.add(content)
    for one in instances.values():
        for tasks in one["arms"]:
            tasks.sort(key=lambda entry: entry["repeat"])
    baseline = find_baseline(arms)
    return {
        "arms": [arm.label for arm in arms],
        "baseline": [arm.label for arm in arms].index(baseline.label),
        "instances": [instances[name] for name in sorted(instances)],
    }


def _describe_run(run: Run, arms: Sequence[Arm]) -> dict[str, Any]:
    study = examine(run)
    labels = {arm.level: arm.label for arm in arms if arm.run.paths.root.resolve() == run.paths.root.resolve()}
    pictures = [path for path in draw_plots(study) if path.suffix == ".svg"]
    return {
        "id": run.run_id,
        "facts": _state_facts(run),
        "simulated": run.is_simulated,
        "finding": state_finding(study),
        "scores": score_cells(run),
        "notes": score_notes(run),
        "difficulties": difficulty_cells(run),
        "quality": quality_cells(study.scores),
        "markdown": markdown_scores(run),
        "reliability": reliability_cells(study),
        "comparison": _describe_comparisons(study.comparisons, {}, labels) if study.comparisons else None,
        "plots": [
            {"alt": _describe_plot(study, path), "data": base64.b64encode(path.read_bytes()).decode()}
            for path in pictures
        ],
        "published": published_table(study),
        "rubrics": rubric_table(run),
    }


def _describe_plot(study: Study, path: Path) -> str:
    return state_finding(study) if path.stem == "levels" else f"Plot of {path.stem}; its figures are in the tables."


def _state_facts(run: Run) -> str:
    config, dataset = run.record["config"], run.record["dataset"]
    agent, sampling = config["agent"], config["sampling"]
    return (
        f"{config.get('model') or 'model named by the server'}; {dataset['name']}, {dataset['instances']} instances, "
        f"repeats: {config['repeats']}; agent profile {agent['profile']}, {agent['step_limit']} steps; temperature "
        f"{sampling['temperature']:g}; started {run.record.get('started', 'unknown')}, "
        f"{'ended ' + run.record['ended'] if run.record.get('ended') else 'not ended'}"
    )


def _describe_comparisons(
    comparisons: Sequence[Comparison], accepted: dict[str, str], labels: dict[str, str]
) -> dict[str, Any]:
    baseline = comparisons[0].baseline
    return {
        "baseline": baseline.label,
        "cells": [HEADERS, *map(format_comparison, comparisons)],
        "notes": comparison_notes(comparisons, accepted),
        "refused": "",
        "allowed": accepted,
        "details": [
            {
                "label": one.other.label,
                "base": labels.get(baseline.level, baseline.label),
                "other": labels.get(one.other.level, one.other.label),
                "lost": one.lost,
                "won": one.won,
                "subsets": subset_cells(one),
            }
            for one in comparisons
        ],
    }


def _compare_runs(arms: Sequence[Arm], allow: Sequence[str]) -> dict[str, Any]:
    answered = [arm for arm in arms if len(arm.answers)]
    try:
        baseline = find_baseline(answered)
        accepted = check_comparable([baseline, *(arm for arm in answered if arm is not baseline)], allow)
        return _describe_comparisons(compare_arms(answered, baseline, DEFAULT_MARGIN), accepted, {})
    except UserError as error:
        return {"refused": str(error)}
