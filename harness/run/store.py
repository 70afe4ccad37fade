"""The run directory: every finished step is on disk before the next begins, and no file is ever half written.

A file appears by rename, so it is either absent, old or new, at whatever instant the process dies. Two markers order
a task's steps: `agent.json` is written after the patch, `task.json` after the verdict. What lacks its marker is done
again, what has it never is.

`run.json` (format 1) holds:

- `format`, `run_id`, `harness_version`, `git_commit`, `python`, `platform`, `started`, `ended` (UTC, ISO 8601; `ended`
  is null until every task is done);
- `config`: the `RunConfig` as data, without keys that do not bear on the results (workers, time to start, API key);
- `dataset`: `{name, sha256, instances, instance_ids}`;
- `prompts_sha256`: hash of the agent's prompts; `agent_version`: `VERSION` of `harness.agent.profiles` (absent: 1);
- `sandboxes`: `{names: [...], images: {instance_id: digest}}`;
- `seeds`: `{run, tasks: {"<instance>/<repeat>": seed}}`, the same at every level;
- `levels`: `{name: {quant, model, base_url, description, identity, weights_bytes, perplexity, tokens_per_second,
  generated_tokens, seconds_at_work}}`, each entry filled in when its server is up; `weights_bytes`, `perplexity` and
  `tokens_per_second` (generated tokens per second with at least one task at work) are null where unknown. Where they
  were measured also `kld_mean`, `kld_p99`, `top1` (against the baseline), `transcripts` (the same on agents'
  transcripts), `tool_calls`, `tool_calls_valid` and `joules` (all GPUs of the machine while the level was at work).
"""

import fcntl
import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from harness.errors import UserError
from harness.files import replace_file
from harness.run.paths import RunPaths
from harness.run.rows import TaskRow, from_json, to_table

FORMAT = 1


def write_json(path: Path, data: Any) -> None:
    """`replace_file` of `data` as indented JSON."""
    replace_file(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def write_text(path: Path, text: str) -> None:
    """`replace_file` of `text` as UTF-8; bytes that were decoded with `surrogateescape` come out as they went in."""
    replace_file(path, text.encode("utf-8", "surrogateescape"))


def read_text(path: Path) -> str:
    """What `write_text` wrote, line ends untouched: a patch against a file with CRLF line ends must keep them."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; a file that something else damaged is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove the file and run the same command again") from error


@contextmanager
def lock(paths: RunPaths) -> Iterator[None]:
    """Hold the run directory. The kernel drops the lock with the process, so a killed run leaves nothing to clean up.

    Raises `UserError` while another process holds it.
    """
    paths.root.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(
                f"{paths.root}: process {owner} is working on this run; wait for it, or choose another --run-id"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class Store:
    """Rows and record of a run whose `lock` the caller holds. Only the event loop calls it, `note_image` apart."""

    def __init__(self, paths: RunPaths) -> None:
        """Read what is there already; temporary files that a killed process left are removed."""
        self.paths = paths
        self._images = threading.Lock()
        for leftover in paths.root.rglob(".*.tmp"):
            leftover.unlink()
        self.rows = {row.key: row for row in _read_rows(paths)}
        self.record: dict[str, Any] = read_json(paths.record) if paths.record.exists() else {}

    def begin(self, record: dict[str, Any]) -> None:
        """Start with `record`, or continue a run whose record has the same configuration and dataset.

        Raises `UserError` that names the first differing key.
        """
        if not self.record:
            self.record = {"format": FORMAT, **record}
            self.save_record()
            return
        for section in ("config", "dataset", "prompts_sha256", "agent_version", "harness_version", "sandboxes"):
            difference = find_difference(self.record.get(section), record.get(section), section)
            if difference:
                raise UserError(f"{self.paths.record}: {difference}; choose another --run-id, or undo the change")

    def note_image(self, instance_id: str, identity: dict[str, str]) -> None:
        """Record the image that an instance runs in. From any thread: the record is on disk with its next change.

        Raises `UserError` where the run began with another image of the instance.
        """
        with self._images:
            sandboxes = self.record.get("sandboxes") or {}
            known = sandboxes.get("images", {})
            before = known.get(instance_id, identity)
            if before.get("digest") != identity.get("digest"):
                raise UserError(
                    f"{self.paths.record}: sandboxes.images.{instance_id}.digest was {before.get('digest')}, is now "
                    f"{identity.get('digest')}; bring the image that the run began with, or choose another --run-id"
                )
            # A new mapping each time, since the event loop may be writing the old one to disk.
            self.record["sandboxes"] = {**sandboxes, "images": {instance_id: identity, **known}}

    def save_record(self) -> None:
        """Write `run.json`."""
        write_json(self.paths.record, self.record)

    def finish_task(self, row: TaskRow) -> None:
        """Write the task's row, its last marker."""
        write_json(self.paths.level(row.level).task(row.instance_id, row.repeat).task, asdict(row))
        self.rows[row.key] = row

    def write_tables(self) -> None:
        """Rebuild `results.parquet` and every `predictions.jsonl` from the task rows."""
        rows = list(self.rows.values())
        sink = io.BytesIO()
        pq.write_table(to_table(rows), sink)
        replace_file(self.paths.results, sink.getvalue())
        for level, repeat in sorted({(row.level, row.repeat) for row in rows}):
            self._write_predictions(level, repeat)

    def _write_predictions(self, level: str, repeat: int) -> None:
        folder = self.paths.level(level)
        ids = sorted(key[1] for key in self.rows if key[0] == level and key[2] == repeat)
        name = f"{self.record.get('run_id', self.paths.root.name)}.{level}"
        lines = [_prediction(name, instance_id, folder.task(instance_id, repeat).patch) for instance_id in ids]
        replace_file(folder.predictions(repeat), "".join(lines).encode())


def find_difference(stored: Any, wanted: Any, key: str) -> str | None:
    """`key.sub was A, is now B` for the first difference between two JSON values, or None."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in sorted(stored.keys() | wanted.keys()):
            difference = find_difference(stored.get(name), wanted.get(name), f"{key}.{name}")
            if difference:
                return difference
        return None
    if stored == wanted:
        return None
    return f"{key} was {_shorten(stored)}, is now {_shorten(wanted)}"


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _prediction(name: str, instance_id: str, patch: Path) -> str:
    text = read_text(patch) if patch.exists() else ""
    return json.dumps({"instance_id": instance_id, "model_name_or_path": name, "model_patch": text}) + "\n"


def _read_rows(paths: RunPaths) -> Iterator[TaskRow]:
    for path in sorted(paths.root.glob("levels/*/instances/*/*/task.json")):
        try:
            yield from_json(read_json(path))
        except TypeError as error:
            raise UserError(f"{path}: not a task row of this version of sweq ({error})") from error
