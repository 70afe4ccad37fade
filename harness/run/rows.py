"""One row per task: the columns of `results.parquet`."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


@dataclass(frozen=True)
class TaskRow:
    """How one task (level, instance, repeat) ended, and what it took. Times are seconds, sizes bytes.

    `outcome` is an `Outcome`, `limit` a `Limit`; `resolved` follows the official 5.x semantics and `resolved_v4` the
    4.1 ones, both False unless the outcome is an answer. `attempts` counts starts of the task; `infra_reason` is empty
    unless the machine, not the model, had a part in the end. `quant` is empty for levels that only name a server.
    `flags` are the sorted names, one space apart, of what `harness.run.tampering` noticed, and `suspect` says that the
    verdict rests on a patch that only rewrites outcomes; rows of earlier versions have neither and read as clean.
    """

    run_id: str
    level: str
    quant: str
    instance_id: str
    repo: str
    difficulty: str
    repeat: int
    outcome: str
    limit: str
    resolved: bool
    resolved_v4: bool
    submitted: bool
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds_agent: float
    seconds_model: float
    seconds_tools: float
    seconds_grading: float
    patch_bytes: int
    files_touched: int
    attempts: int
    infra_reason: str
    seed: int
    flags: str = ""
    suspect: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes the task unique within its run: level, instance, repeat."""
        return (self.level, self.instance_id, self.repeat)


COLUMNS = tuple(field.name for field in fields(TaskRow))
SCHEMA = pa.schema([(field.name, _ARROW[field.type]) for field in fields(TaskRow)])


def to_table(rows: list[TaskRow]) -> pa.Table:
    """Arrow table of `rows` with `SCHEMA`, sorted by key so that equal runs give equal files."""
    ordered = sorted(rows, key=lambda row: row.key)
    return pa.Table.from_pylist([asdict(row) for row in ordered], schema=SCHEMA)


def from_json(data: dict[str, Any]) -> TaskRow:
    """The row that `task.json` holds; raises `TypeError` for other keys than `COLUMNS`."""
    return TaskRow(**data)
