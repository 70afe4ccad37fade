"""Predictions files, in the official shape: `instance_id`, `model_name_or_path`, `model_patch`."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import replace_file
from harness.grading.patch import encode
from harness.instances import Instance, select_instances


@dataclass(frozen=True)
class Prediction:
    """One model's answer to one instance; `model_patch` may be null."""

    instance_id: str
    model_name_or_path: str
    model_patch: str | None


def read_predictions(source: str, instances: Sequence[Instance]) -> list[Prediction]:
    """Predictions of `source`, in its order.

    `gold` takes the dataset's own patches and `empty` a patch of nothing, for all `instances`; otherwise `source` is a
    .jsonl file, or a .json file with a list, or with an object whose values are the predictions. Raises `UserError`
    naming the file, the place and the key; an id that `instances` lacks or that occurs twice is an error.
    """
    if source in ("gold", "empty"):
        patches = {instance.instance_id: instance.patch if source == "gold" else "" for instance in instances}
        return [Prediction(instance_id, source, patch) for instance_id, patch in patches.items()]
    predictions = [_read_prediction(entry, where) for where, entry in _read_entries(Path(source))]
    if not predictions:
        raise UserError(f"{source}: holds no predictions; at least one is needed")
    counts = Counter(prediction.instance_id for prediction in predictions)
    for instance_id, count in counts.items():
        if count > 1:
            raise UserError(f"{source}: instance_id `{instance_id}` occurs {count} times; one prediction each is right")
    select_instances(instances, counts, source)
    return predictions


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    lines = [json.dumps(asdict(prediction)) + "\n" for prediction in predictions]
    replace_file(path, "".join(lines).encode())


def _read_entries(path: Path) -> list[tuple[str, Any]]:
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"{path}: predictions are `gold`, `empty`, or a file ending in .json or .jsonl")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; predictions are `gold`, `empty`, or an existing file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        lines = [(f"{path}: line {number}", line) for number, line in enumerate(text.split("\n"), start=1)]
        return [(where, _parse(line, where)) for where, line in lines if line.strip()]
    entries = _parse(text, str(path))
    if isinstance(entries, Mapping):
        return [(f"{path}: key {key}", entry) for key, entry in entries.items()]
    if isinstance(entries, list):
        return [(f"{path}: entry {number}", entry) for number, entry in enumerate(entries, start=1)]
    raise UserError(f"{path}: holds {type(entries).__name__}; a list or an object of predictions would be right")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}") from error


def _read_prediction(entry: Any, where: str) -> Prediction:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: holds {type(entry).__name__}; an object with instance_id and model_patch is right")
    for key in ("instance_id", "model_name_or_path"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{where}: key {key}: `{entry.get(key)}`; a string would be right")
    patch = entry.get("model_patch", 0)
    if not isinstance(patch, str | None):
        raise UserError(f"{where}: key model_patch is missing or no string; a string or null would be right")
    try:
        encode(patch or "")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: key model_patch: not text that a file can hold: {error.reason}") from error
    return Prediction(entry["instance_id"], entry["model_name_or_path"], patch)
