"""Run directories drawn from known true rates, clearly marked as simulated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from harness.report.simulate import Simulation, make_record
from harness.run.outcome import Outcome
from harness.run.paths import RunPaths
from harness.run.rows import TaskRow, to_table

REPOS = ("django/django", "sympy/sympy", "astropy/astropy", "psf/requests")
DIFFICULTIES = ("<15 min fix", "15 min - 1 hour", "1-4 hours")


def _row(run_id: str, level: str, index: int, repeat: int, resolved: bool, rng: np.random.Generator) -> TaskRow:
    repo = REPOS[index % len(REPOS)]
    outcome = (
        Outcome.RESOLVED if resolved else rng.choice([Outcome.UNRESOLVED, Outcome.UNRESOLVED, Outcome.EMPTY_PATCH])
    )
    steps = int(rng.integers(5, 90))
    return TaskRow(
        run_id=run_id,
        level=level,
        quant=level,
        instance_id=f"{repo.replace('/', '__')}-{index:04d}",
        repo=repo,
        difficulty=DIFFICULTIES[index % len(DIFFICULTIES)],
        repeat=repeat,
        outcome=str(outcome),
        limit="none",
        resolved=resolved,
        resolved_v4=resolved,
        submitted=True,
        steps=steps,
        prompt_tokens=steps * 6_000,
        cached_tokens=steps * 5_500,
        completion_tokens=steps * 300,
        seconds_agent=steps * 3.0,
        seconds_model=steps * 2.5,
        seconds_tools=steps * 0.4,
        seconds_grading=20.0,
        patch_bytes=400,
        files_touched=1,
        attempts=1,
        infra_reason="",
        seed=repeat,
    )


def _rates(difficulty: np.ndarray, mean: float) -> np.ndarray:
    """Per-instance rates with this mean: most instances are nearly always or nearly never solved."""
    if mean in (0, 1):
        return np.full_like(difficulty, mean)
    return stats.beta.ppf(difficulty, 0.7 * mean, 0.7 * (1 - mean))


def _set(record: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        record = record[parent]
    record[last] = value


@pytest.fixture
def fake_store(tmp_path: Path):
    """A function that writes a run directory: outcome of each repeat is a coin with the instance's own rate.

    Instances are as hard at one level as at the other, so that levels correlate as real ones do. `change` sets keys of
    the record ("config.repeats"), `outcomes` overrides tasks by (level, index, repeat).
    """

    def make(
        levels: Sequence[str] = ("bf16", "int8", "int4"),
        instances: int = 60,
        repeats: int = 1,
        true_rates: Mapping[str, float] | None = None,
        seed: int = 0,
        *,
        run_id: str = "simulated",
        change: Mapping[str, Any] | None = None,
        outcomes: Mapping[tuple[str, int, int], Outcome] | None = None,
    ) -> Path:
        rng = np.random.default_rng(seed)
        rates = dict.fromkeys(levels, 0.6) | dict(true_rates or {})
        difficulty = rng.random(instances)
        rows = []
        for level in levels:
            solve = _rates(difficulty, rates[level])
            for index in range(instances):
                for repeat in range(repeats):
                    forced = (outcomes or {}).get((level, index, repeat))
                    row = _row(run_id, level, index, repeat, bool(rng.random() < solve[index]), rng)
                    solved = forced is Outcome.RESOLVED
                    rows.append(row if forced is None else replace(row, outcome=str(forced), resolved=solved))
        paths = RunPaths(tmp_path / run_id)
        paths.root.mkdir(parents=True)
        ids = sorted({row.instance_id for row in rows})
        record = make_record(Simulation(instances, repeats, {name: rates[name] for name in levels}, run_id=run_id), ids)
        for key, value in (change or {}).items():
            _set(record, key, value)
        paths.record.write_text(json.dumps(record))
        pq.write_table(to_table(rows), paths.results)
        return paths.root

    return make
