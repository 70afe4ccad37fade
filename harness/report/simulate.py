"""Run directories drawn from known true rates, for tests and demonstrations. Everything in them says `simulated`.

Each instance has a rate of its own, as hard at one level as at the other, so that levels correlate as real ones do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from harness.errors import UserError
from harness.files import replace_file
from harness.report.figures import Vector
from harness.report.simulated_work import write_work
from harness.run.outcome import Outcome
from harness.run.paths import RunPaths
from harness.run.rows import TaskRow, to_table

REPOS = {
    "django/django": 231,
    "sympy/sympy": 75,
    "sphinx-doc/sphinx": 44,
    "matplotlib/matplotlib": 34,
    "scikit-learn/scikit-learn": 32,
    "astropy/astropy": 22,
    "pydata/xarray": 22,
    "pytest-dev/pytest": 19,
    "pylint-dev/pylint": 10,
    "psf/requests": 8,
    "mwaskom/seaborn": 2,
    "pallets/flask": 1,
}
"""Instances of each repository in SWE-bench Verified."""

DIFFICULTIES = {"<15 min fix": 194, "15 min - 1 hour": 261, "1-4 hours": 42, ">4 hours": 3}
"""Instances of each annotated difficulty in SWE-bench Verified."""

GIBIBYTES = {"bf16": 148.4, "fp8": 74.9, "int8": 79.1, "int4": 42.3}
RATES = {"bf16": 0.60, "fp8": 0.60, "int8": 0.595, "int4": 0.52}
DIVERGENCE = {"bf16": 0.0, "fp8": 0.006, "int8": 0.004, "int4": 0.041}
_SHAPE = 0.7
_SECONDS = {"bf16": 1.5, "fp8": 1.0, "int8": 1.05, "int4": 0.8}


@dataclass(frozen=True)
class Simulation:
    """What to draw. `rates` are the true mean solved shares by level, in order; the first is the baseline."""

    instances: int = 500
    repeats: int = 5
    rates: Mapping[str, float] = field(default_factory=lambda: dict(RATES))
    seed: int = 0
    run_id: str = "simulated"
    infra_share: float = 0.004
    trajectories: bool = True


def simulate(root: Path, plan: Simulation) -> Path:
    """Write a run directory at `root` (which must not hold one) and return it; `UserError` where it does."""
    paths = RunPaths(root)
    if paths.record.exists():
        raise UserError(f"{root}: holds a run already; simulated data go into a folder of their own")
    rng = np.random.default_rng(plan.seed)
    hardness = rng.random(plan.instances)
    repos, difficulties = _spread(REPOS, plan.instances, rng), _grade(hardness)
    rows: list[TaskRow] = []
    for level, rate in plan.rates.items():
        solve = draw_rates(hardness, rate)
        for index in range(plan.instances):
            for repeat in range(plan.repeats):
                solved = bool(rng.random() < solve[index])
                row = _row(plan, level, index, repeat, solved, (repos[index], difficulties[index]), rng)
                rows.append(row)
                if plan.trajectories:
                    write_work(paths.level(level).task(row.instance_id, repeat), row, rng)
    ids = sorted({row.instance_id for row in rows})
    replace_file(paths.record, json.dumps(make_record(plan, ids), indent=2).encode())
    pq.write_table(to_table(rows), paths.results)
    for level in plan.rates:
        _write_predictions(paths, level, [row for row in rows if row.level == level])
    return root


def draw_rates(hardness: Vector, mean: float) -> Vector:
    """Per-instance rates, float64 [n], with this mean: most instances are nearly always or nearly never solved."""
    if mean in (0, 1):
        return np.full_like(hardness, mean)
    return np.asarray(stats.beta.ppf(hardness, _SHAPE * mean, _SHAPE * (1 - mean)), dtype=np.float64)


def make_record(plan: Simulation, ids: list[str]) -> dict[str, Any]:
    """The run record, with `simulated` and the true rates in it."""
    return {
        "format": 1,
        "run_id": plan.run_id,
        "simulated": True,
        "true_rates": dict(plan.rates),
        "harness_version": "0.1.0",
        "started": "2026-01-05T08:00:00+00:00",
        "ended": "2026-01-05T19:30:00+00:00",
        "config": {
            "name": "simulated",
            "dataset": "simulated",
            "model": "simulated/model",
            "levels": [{"name": name, "quant": name} for name in plan.rates],
            "baseline": next(iter(plan.rates)),
            "repeats": plan.repeats,
            "endpoint": {"max_context": 131072},
            "agent": {"profile": "tools", "step_limit": 250, "token_limit": 2_000_000},
            "sampling": {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "max_tokens": 4096, "seed": plan.seed},
            "grading_timeout": 1800.0,
        },
        "dataset": {"name": "simulated", "sha256": "a" * 64, "instances": len(ids), "instance_ids": ids},
        "prompts_sha256": "b" * 64,
        "levels": {name: _entry(name) for name in plan.rates},
    }


def _entry(level: str) -> dict[str, Any]:
    size = GIBIBYTES.get(level, 60.0)
    divergence = DIVERGENCE.get(level, 0.01)
    return {
        "quant": level,
        "weights_bytes": int(size * 2**30),
        "perplexity": 4.0 + 4 * divergence,
        "kld_mean": divergence,
        "kld_p99": 9 * divergence,
        "top1": 1 - 1.5 * divergence**0.5 / 4,
        "tokens_per_second": 9_000 / size,
        "tool_calls": 100_000,
        "tool_calls_valid": 100_000 - int(20_000 * divergence) - 300,
        "joules": size * 4.1e5,
        "seconds_at_work": 41_000.0 * _SECONDS.get(level, 1.0),
    }


def _row(
    plan: Simulation, level: str, index: int, repeat: int, solved: bool, kind: tuple[str, str], rng: np.random.Generator
) -> TaskRow:
    repo, difficulty = kind
    failed = rng.random() < plan.infra_share
    misses = [Outcome.UNRESOLVED, Outcome.EMPTY_PATCH, Outcome.PATCH_FAILED]
    outcome = Outcome.RESOLVED if solved else Outcome(str(rng.choice(misses, p=[0.9, 0.08, 0.02])))
    limit = "none" if solved or rng.random() < 0.8 else str(rng.choice(["step_limit", "context_limit"]))
    steps = int(np.clip(rng.lognormal(3.9 if solved else 4.2, 0.5), 4, 250))
    prompt, pace = steps * 9_000 + 145 * steps**2, _SECONDS.get(level, 1.0)
    return TaskRow(
        run_id=plan.run_id,
        level=level,
        quant=level,
        instance_id=f"{repo.replace('/', '__')}-{10_000 + index}",
        repo=repo,
        difficulty=difficulty,
        repeat=repeat,
        outcome=str(Outcome.INFRA_ERROR if failed else outcome),
        limit=limit,
        resolved=solved and not failed,
        resolved_v4=solved and not failed,
        submitted=limit == "none",
        steps=steps,
        prompt_tokens=prompt,
        cached_tokens=int(0.98 * prompt),
        completion_tokens=steps * 435,
        seconds_agent=steps * 4.0 * pace + steps,
        seconds_model=steps * 4.0 * pace,
        seconds_tools=steps * 0.9,
        seconds_grading=20.0,
        patch_bytes=0 if outcome == Outcome.EMPTY_PATCH else 640,
        files_touched=0 if outcome == Outcome.EMPTY_PATCH else 1,
        attempts=3 if failed else 1,
        infra_reason="simulated: the sandbox was lost" if failed else "",
        seed=repeat,
    )


def _spread(shares: Mapping[str, int], count: int, rng: np.random.Generator) -> list[str]:
    """`count` names in these proportions, in random order."""
    names = [name for name, number in shares.items() for _ in range(number)]
    places = np.linspace(0, len(names) - 1, count).astype(int)
    return [names[place] for place in rng.permutation(places)]


def _grade(hardness: Vector) -> list[str]:
    """The harder (lower rank) an instance, the longer its annotated fix, in Verified's proportions."""
    names = [name for name, number in DIFFICULTIES.items() for _ in range(number)]
    return [names[min(int((1 - value) * len(names)), len(names) - 1)] for value in hardness]


def _write_predictions(paths: RunPaths, level: str, rows: list[TaskRow]) -> None:
    for repeat in sorted({row.repeat for row in rows}):
        lines = []
        for row in rows:
            if row.repeat == repeat:
                patch = paths.level(level).task(row.instance_id, repeat).patch
                text = patch.read_text() if patch.exists() else ""
                name = f"{row.run_id}.{level}"
                lines.append({"instance_id": row.instance_id, "model_name_or_path": name, "model_patch": text})
        paths.level(level).root.mkdir(parents=True, exist_ok=True)
        replace_file(paths.level(level).predictions(repeat), "".join(json.dumps(x) + "\n" for x in lines).encode())
