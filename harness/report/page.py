"""One HTML file that holds a whole report and loads nothing. All that a model wrote is escaped by the template."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from harness.agent.trajectory import read_trajectory
from harness.errors import UserError
from harness.files import replace_file
from harness.report.arms import Arm, Run, find_arms, list_arms, load_run
from harness.report.compare import HEADERS, compare_arms, comparison_notes, find_baseline, format_comparison
from harness.report.guard import check_comparable
from harness.report.plots import DEFAULT_MARGIN, state_finding, write_plots
from harness.report.tables import markdown_scores, score_cells, score_notes
from harness.run.paths import TaskPaths
from harness.run.store import read_text

TASK_HEADERS = ("instance", "level", "repeat", "outcome", "limit", "steps", "tokens", "agent s", "patch bytes")
TEXT_BUDGET = 20_000_000
"""Characters of trajectories and patches on one page; what comes after is named, not shown."""


@dataclass
class _Budget:
    left: int
    left_out: int = 0

    def take(self, size: int) -> bool:
        """Whether `size` more characters fit; they count if so."""
        if size > self.left:
            self.left_out += 1
            return False
        self.left -= size
        return True


def write_report(runs: list[Path], text_budget: int = TEXT_BUDGET) -> Path:
    """Write `report.html` of `runs` into the first run's directory and return its path.

    Draws the plots anew. Several runs are compared with each other where the guard allows it; where not, the page says
    why. Raises `UserError` for what is no run directory.
    """
    loaded = [load_run(root) for root in runs]
    if not loaded:
        raise UserError("report: no run directory; name at least one folder that sweq eval wrote")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files("harness.report").joinpath("page.html").read_text("utf-8"))
    html = template.render(
        title=", ".join(run.run_id for run in loaded),
        version=loaded[0].record.get("harness_version", ""),
        across=_compare_runs(runs) if len(loaded) > 1 else None,
        runs=[_describe_run(run, text_budget // len(loaded)) for run in loaded],
        task_headers=TASK_HEADERS,
    )
    path = loaded[0].paths.page
    replace_file(path, html.encode("utf-8", "replace"))
    return path


def _describe_run(run: Run, text_budget: int) -> dict[str, Any]:
    arms = [arm for arm in list_arms(run) if len(arm.answers)]
    budget = _Budget(text_budget)
    tasks = [_describe_task(run, row, budget) for row in run.rows.to_dict("records")]
    svg = write_plots(run.paths.root)[1].read_bytes()
    return {
        "id": run.run_id,
        "facts": _state_facts(run),
        "simulated": run.is_simulated,
        "finding": state_finding(run),
        "scores": score_cells(run),
        "notes": score_notes(run),
        "markdown": markdown_scores(run),
        "comparison": _compare(arms, {}) if len(arms) > 1 else None,
        "plot": base64.b64encode(svg).decode(),
        "tasks": tasks,
        "left_out": budget.left_out,
    }


def _state_facts(run: Run) -> str:
    config, dataset = run.record["config"], run.record["dataset"]
    agent, sampling = config["agent"], config["sampling"]
    return (
        f"{config.get('model') or 'model named by the server'}; {dataset['name']}, {dataset['instances']} instances, "
        f"repeats: {config['repeats']}; agent profile {agent['profile']}, {agent['step_limit']} steps; temperature "
        f"{sampling['temperature']:g}; started {run.record.get('started', 'unknown')}, "
        f"{'ended ' + run.record['ended'] if run.record.get('ended') else 'not ended'}"
    )


def _compare(arms: Sequence[Arm], accepted: dict[str, str]) -> dict[str, Any]:
    baseline = find_baseline(arms)
    comparisons = compare_arms(arms, baseline, DEFAULT_MARGIN)
    return {
        "baseline": baseline.label,
        "cells": [HEADERS, *map(format_comparison, comparisons)],
        "notes": comparison_notes(comparisons, accepted),
        "refused": "",
    }


def _compare_runs(roots: Sequence[Path]) -> dict[str, Any]:
    arms = [arm for arm in find_arms([str(root) for root in roots]) if len(arm.answers)]
    try:
        return _compare(arms, check_comparable(arms))
    except UserError as error:
        return {"refused": str(error)}


def _describe_task(run: Run, row: dict[Any, Any], budget: _Budget) -> dict[str, Any]:
    paths = run.paths.level(row["level"]).task(row["instance_id"], row["repeat"])
    messages, patch = _read_messages(paths), read_text(paths.patch) if paths.patch.exists() else ""
    if not budget.take(len(patch) + sum(len(message["text"]) for message in messages)):
        messages, patch = [], ""
    return {
        "outcome": row["outcome"],
        "messages": messages,
        "patch": patch,
        "cells": (
            row["instance_id"],
            row["level"],
            row["repeat"],
            row["outcome"].replace("_", " ") + (f" ({row['infra_reason']})" if row["infra_reason"] else ""),
            row["limit"],
            row["steps"],
            f"{row['prompt_tokens'] + row['completion_tokens']:,}",
            f"{row['seconds_agent']:.1f}",
            row["patch_bytes"],
        ),
    }


def _read_messages(paths: TaskPaths) -> list[dict[str, str]]:
    if not paths.trajectory.exists():
        return []
    messages = read_trajectory(paths.trajectory).messages
    return [{"role": str(message["role"]), "text": _flatten(message)} for message in messages]


def _flatten(message: dict[str, Any]) -> str:
    """What the message says: its text, and any tool calls as JSON."""
    content = message.get("content")
    parts = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)] if content else []
    parts += [json.dumps(call, ensure_ascii=False, indent=1) for call in message.get("tool_calls") or []]
    return "\n".join(parts)
