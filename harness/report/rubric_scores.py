"""Scores of the rubric tasks as a run's directory holds them."""

from pathlib import Path

import pandas as pd

from harness.errors import UserError
from harness.run.store import read_json


def read_rubric_scores(root: Path) -> pd.DataFrame:
    """One row per scored answer: `level, task, sample, score` (0 to 10); empty where the run has no rubric tasks.

    Reads `levels/<level>/rubrics/<task>/<sample>/score.json`; an answer that the machine spoilt has no score and no
    row. Raises `UserError` for a file of another form.
    """
    rows = []
    for path in sorted(root.glob("levels/*/rubrics/*/*/score.json")):
        document = read_json(path)
        if not isinstance(document, dict) or "task" not in document or "compat" not in document:
            raise UserError(f"{path}: not a rubric score of this version of sweq; remove it and run sweq rubrics again")
        if document["compat"] is not None:
            rows.append((path.parts[-5], str(document["task"]), path.parts[-2], float(document["compat"])))
    return pd.DataFrame(rows, columns=["level", "task", "sample", "score"])
