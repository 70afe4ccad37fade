"""What the report reads: runs from their directories, and the arms (one level of one run) that it compares."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import UserError
from harness.report.figures import Sample
from harness.run.outcome import Outcome
from harness.run.paths import RunPaths
from harness.run.rows import COLUMNS
from harness.run.store import read_json

RESULTS = Path("results/runs")
_LATER: dict[str, Any] = {"flags": "", "suspect": False}
_ANSWERS = [str(outcome) for outcome in Outcome if outcome.is_answer]


@dataclass(frozen=True)
class Run:
    """One run directory: its record (`run.json`) and one row per finished task (columns of `TaskRow`)."""

    paths: RunPaths
    record: dict[str, Any]
    rows: pd.DataFrame

    @property
    def run_id(self) -> str:
        """The run's name."""
        return str(self.record["run_id"])

    @property
    def levels(self) -> list[str]:
        """Levels with at least one finished task, in the configuration's order."""
        present = set(self.rows["level"])
        return [level["name"] for level in self.record["config"]["levels"] if level["name"] in present]

    @property
    def baseline(self) -> str | None:
        """The level that the configuration calls baseline, else its first; None where that has no task yet."""
        config = self.record["config"]
        name = config.get("baseline") or config["levels"][0]["name"]
        return name if name in self.levels else None

    @property
    def tasks_per_level(self) -> int:
        """Tasks of each level when the run is complete."""
        return int(self.record["dataset"]["instances"]) * int(self.record["config"]["repeats"])

    @property
    def is_simulated(self) -> bool:
        """Whether the rows were drawn from a random generator instead of measured."""
        return bool(self.record.get("simulated"))


@dataclass(frozen=True)
class Arm:
    """One level of one run. `label` is unique among the arms that are shown together."""

    run: Run
    level: str
    label: str

    @property
    def tasks(self) -> pd.DataFrame:
        """Rows of all finished tasks."""
        return self.run.rows[self.run.rows["level"] == self.level]

    @property
    def answers(self) -> pd.DataFrame:
        """Rows that count in the score: the model, not the machine, brought the task to its end."""
        tasks = self.tasks
        return tasks[tasks["outcome"].isin(_ANSWERS)]

    @property
    def entry(self) -> dict[str, Any]:
        """What the run record says of the level; empty while its server was never up."""
        return dict(self.run.record["levels"].get(self.level, {}))

    def sample(self, instances: Sequence[str] | None = None) -> Sample:
        """Solved share and number of answered repeats per instance; of `instances`, in that order, where given."""
        grouped = self.answers.groupby("instance_id")["resolved"].agg(["mean", "count"])
        if instances is not None:
            grouped = grouped.loc[list(instances)]
        return Sample(grouped["mean"].to_numpy(np.float64), grouped["count"].to_numpy(np.float64))


def load_run(root: Path) -> Run:
    """Read a run directory; `UserError` where it is none or holds no finished task."""
    paths = RunPaths(root)
    if not paths.record.is_file():
        raise UserError(f"{root}: no run directory (it has no {paths.record.name}); name a folder that sweq eval wrote")
    if not paths.results.is_file():
        raise UserError(f"{paths.results}: missing; no task of this run is finished yet, so run sweq eval again first")
    record = read_json(paths.record)
    for key in ("run_id", "config", "dataset", "levels"):
        if not isinstance(record, dict) or key not in record:
            raise UserError(f"{paths.record}: {key}: missing; not the record of a run of this version of sweq")
    try:
        rows = pq.read_table(paths.results).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{paths.results}: no Parquet file ({' '.join(str(error).split())}); run sweq eval again"
        ) from error
    # Rows of earlier versions know no tampering and read as clean.
    rows = rows.assign(**{key: value for key, value in _LATER.items() if key not in rows.columns})
    missing = [column for column in COLUMNS if column not in rows.columns]
    if missing:
        raise UserError(f"{paths.results}: no column {missing[0]}; not the results of this version of sweq")
    if rows.empty:
        raise UserError(f"{paths.results}: no rows; no task of this run is finished yet, so run sweq eval again first")
    return Run(paths, record, rows)


def list_arms(run: Run) -> list[Arm]:
    """All levels of one run."""
    return [Arm(run, level, level) for level in run.levels]


def leave_out(arms: Sequence[Arm], names: Collection[str]) -> list[Arm]:
    """The arms without the rows of the instances that `names` holds; arms of one run still share it."""
    runs = {
        id(arm.run): replace(arm.run, rows=arm.run.rows[~arm.run.rows["instance_id"].isin(list(names))]) for arm in arms
    }
    return [replace(arm, run=runs[id(arm.run)]) for arm in arms]


def find_arms(targets: Sequence[str], results: Path = RESULTS) -> list[Arm]:
    """Arms that `targets` name: run directories, run ids under `results`, or RUN:LEVEL. Doubles count once.

    Raises `UserError` that names the target.
    """
    runs: dict[Path, Run] = {}
    chosen: dict[tuple[Path, str], Run] = {}
    for target in targets:
        root, level = _locate(target, results)
        run = runs[root] = runs.get(root) or load_run(root)
        if level is not None and level not in run.levels:
            raise UserError(
                f"{target}: run {run.run_id} has no tasks at level {level!r}; it has {', '.join(run.levels)}"
            )
        for name in run.levels if level is None else [level]:
            chosen[(root, name)] = run
    several = len(runs) > 1
    return [Arm(run, level, f"{run.run_id}:{level}" if several else level) for (_, level), run in chosen.items()]


def _locate(target: str, results: Path) -> tuple[Path, str | None]:
    for name, level in ((target, None), tuple(target.rpartition(":")[::2])):
        for root in (Path(name), results / name):
            if name and root.is_dir():
                return root.resolve(), level
    raise UserError(f"{target}: no such run; name a run directory, a run id under {results}, or RUN:LEVEL")
