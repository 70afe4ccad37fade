"""The end of a run: its score table, its comparison, its plots and its report page."""

from collections.abc import Callable
from pathlib import Path

from harness.report.arms import load_run
from harness.report.compare import print_comparisons, to_json
from harness.report.page import write_report
from harness.report.study import examine
from harness.report.tables import print_scores
from harness.run.store import write_json


def conclude(run_dir: Path, echo: Callable[[str], None]) -> Path:
    """Print the scores and the comparison, write compare.json, the plots and report.html; returns the page's path."""
    run = load_run(run_dir)
    print_scores(run_dir)
    study = examine(run)
    if study.comparisons:
        print_comparisons(study.comparisons, {})
        write_json(run.paths.comparison, to_json(study.comparisons, {}))
    page = write_report([run_dir])
    echo(f"run:    {run_dir}")
    echo(f"plot:   {run.paths.plot}")
    echo(f"report: {page}")
    return page
