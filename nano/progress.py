"""How far a run is, on disk: checkpoints that are whole or absent, the log, and the record for the model card."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.errors import UserError
from engine.weights.files import read_json, replacing, write_json
from nano.model import Nano
from nano.muon import Optimizers
from nano.packing import Position

CHECKPOINT, LOG, RECORD, EXPORTED = "checkpoint.pt", "log.jsonl", "record.json", "model"


@dataclass
class Progress:
    """Counts over all parts of a run; `elapsed` in seconds of training; `data` where to read on."""

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    episodes: int = 0
    elapsed: float = 0.0
    data: Position = field(default_factory=Position)


def save_checkpoint(
    out: Path, model: Nano, optimizers: Optimizers, progress: Progress, facts: Mapping[str, Any]
) -> None:
    """Write `out`/checkpoint.pt: weights, optimizers, progress, and `facts`, which a resumed run must share."""
    state = {
        "shape": model.values,
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "progress": asdict(progress),
        "facts": dict(facts),
    }
    with replacing(out / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(
    out: Path, model: Nano, optimizers: Optimizers, facts: Mapping[str, Any], device: torch.device
) -> Progress:
    """Continue from `out`/checkpoint.pt; UserError when there is none or it is of a run with other facts."""
    file = out / CHECKPOINT
    if not file.is_file():
        raise UserError(f"{file}: no such file, so there is nothing to resume; leave --resume away")
    state = torch.load(file, map_location=device, weights_only=True)
    for key, value in facts.items():
        if state["facts"].get(key) != value:
            raise UserError(f"{file}: {key} was {state['facts'].get(key)!r}, not {value!r}; resume with the same")
    if state["shape"] != model.values:
        raise UserError(f"{file}: the model has another shape; resume with the same --layers")
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    saved = dict(state["progress"])
    return Progress(**saved | {"data": Position(**saved["data"])})


def append_log(out: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON line to `out`/log.jsonl."""
    with (out / LOG).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def read_log(out: Path) -> list[dict[str, Any]]:
    """The rows of `out`/log.jsonl; a last line that a crash cut off is left out. UserError when there is no log."""
    file = out / LOG
    if not file.is_file():
        raise UserError(f"{file}: no such file; nano.train --out DIR writes one")
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def drop_log_after(out: Path, step: int) -> None:
    """Forget what was logged of steps that a resumed run does again."""
    rows = [row for row in read_log(out) if row["step"] <= step]
    with replacing(out / LOG) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_record(out: Path, values: Mapping[str, Any]) -> None:
    """Write `out`/record.json, with the machine and the command."""
    machine = {
        "command": shlex.join(["python", "-m", "nano.train", *(_shown_argument(each, out) for each in sys.argv[1:])]),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    write_json(out / RECORD, dict(values) | machine)


def shown_path(path: Path, out: Path) -> str:
    """A path as a record names it, never absolute: from the working directory, from beside `out`, or by name only."""
    whole = Path(os.path.abspath(path))
    for base in (Path.cwd(), Path(os.path.abspath(out)).parent):
        if whole.is_relative_to(base) and base != Path(base.anchor):
            return str(whole.relative_to(base))
    return whole.name


def _shown_argument(argument: str, out: Path) -> str:
    option, equals, value = argument.rpartition("=")
    return option + equals + shown_path(Path(value), out) if Path(value).is_absolute() else argument


def source_commit() -> str:
    """The commit of the source tree, "-dirty" when files differ from it; empty where git or its folder is missing."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return ""
    return found.stdout.strip()


def read_chain(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of runs of which each began with the weights of the one before; UserError where one did not.

    Each has the rows of its log under `log`.
    """
    records = [read_json(run / RECORD) | {"log": read_log(run)} for run in runs]
    for run, record in zip(runs[1:], records[1:], strict=True):
        if not record["init"]:
            raise UserError(f"{run / RECORD}: init is empty; a run that goes on from the weights of the one before it")
    return records
