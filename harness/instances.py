"""One SWE-bench row, validated, and the places that rows come from."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from harness.errors import UserError
from harness.starter.archive import STARTER_500, load_archive
from harness.starter.catalogue import load_rows

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEXT_COLUMNS = ("repo", "base_commit", "version", "problem_statement", "patch", "test_patch")
_GRADING_COLUMNS = ("eval_script", "log_parser", "eval_type")
_EVAL_TYPES = ("pass_and_fail", "fail_only")
_FILE_TYPES = (".parquet", ".json", ".jsonl")


@dataclass(frozen=True)
class Instance:
    """One dataset row. The agent may see `problem_statement` and the repository, never the patches or test names.

    `image` is the official image's name, or None where the instance brings its base tree along in `tree`: a folder, or
    the text of each file by its path. It becomes `/testbed`, committed as `base_commit`.
    """

    instance_id: str
    repo: str
    base_commit: str
    version: str
    problem_statement: str
    patch: str
    test_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    eval_script: str
    log_parser: str
    eval_type: str
    image: str | None = None
    difficulty: str = ""
    tree: Path | Mapping[str, str] | None = None


def load_instances(dataset: str, ids: Sequence[str] = (), limit: int | None = None) -> list[Instance]:
    """Instances of `dataset`, in its order: those named by `ids` (all if empty), then at most `limit` of them.

    `dataset` is `starter` or `starter-500` (the bundled sets), a .parquet, .json or .jsonl file with the official
    columns, or a hub id (its `test` split). Raises `UserError` naming the dataset, the row and the column for anything
    that is not right.
    """
    instances = [_read_row(row, f"{dataset}: row {number}") for number, row in enumerate(_load_rows(dataset), start=1)]
    if not instances:
        raise UserError(f"{dataset}: holds no rows; at least one is needed")
    _refuse_duplicates(instances, dataset)
    return select_instances(instances, ids, dataset)[:limit]


def select_instances(instances: Sequence[Instance], ids: Iterable[str], where: str) -> list[Instance]:
    """The instances that `ids` names, in the order of `instances`; all of them if it names none."""
    wanted = set(ids)
    known = [instance.instance_id for instance in instances]
    for missing in sorted(wanted.difference(known)):
        raise UserError(f"{where}: no instance `{missing}`{_suggest(missing, known)}")
    return [instance for instance in instances if not wanted or instance.instance_id in wanted]


def dataset_hash(instances: Iterable[Instance]) -> str:
    """sha256 (64 hex digits) over the content of the rows, whatever their order and wherever they were read from."""
    digest = hashlib.sha256()
    for instance in sorted(instances, key=lambda instance: instance.instance_id):
        # Where a tree lies depends on the machine; what it holds is fixed by base_commit.
        row = {key: value for key, value in asdict(instance).items() if key != "tree"}
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _suggest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _refuse_duplicates(instances: Iterable[Instance], where: str) -> None:
    seen: set[str] = set()
    for instance in instances:
        if instance.instance_id in seen:
            raise UserError(f"{where}: column instance_id: `{instance.instance_id}` occurs twice; ids must be unique")
        seen.add(instance.instance_id)


def _load_rows(dataset: str) -> Sequence[Any]:
    if dataset == "starter":
        return load_rows()
    if dataset == STARTER_500:
        return load_archive()
    path = Path(dataset)
    if path.suffix in _FILE_TYPES:
        return _read_file(path)
    if path.exists() or dataset.count("/") != 1:
        kinds = f"`starter`, `{STARTER_500}`, a file ending in {', '.join(_FILE_TYPES)}, or a hub id"
        raise UserError(f"{dataset}: a dataset is {kinds}")
    return _load_from_hub(dataset)


def _read_file(path: Path) -> Sequence[Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a dataset is `starter`, `{STARTER_500}`, an existing file, or a hub id")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return [_parse_json(line, f"{path}: line {number}") for number, line in lines]
    rows = _parse_json(text, str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds {type(rows).__name__}; a list of rows would be right")
    return rows


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}") from error


def _read_parquet(path: Path) -> Sequence[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    return rows


def _load_from_hub(name: str) -> Sequence[Any]:
    import datasets

    try:
        return list(datasets.load_dataset(name, split="test"))
    except Exception as error:  # the library raises whatever its transports raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: cannot load split `test` from the hub ({reason}); a local file works offline"
        ) from error


def _read_row(row: Any, where: str) -> Instance:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: holds {type(row).__name__}; an object with the official columns would be right")
    instance_id = _read_text(row, "instance_id", where)
    if not _ID.fullmatch(instance_id):
        raise UserError(f"{where}: column instance_id: `{instance_id}`; letters, digits, `.`, `_`, `-` would be right")
    where = f"{where} ({instance_id})"
    texts = {column: _read_text(row, column, where) for column in (*_TEXT_COLUMNS, *_GRADING_COLUMNS)}
    if texts["eval_type"] not in _EVAL_TYPES:
        raise UserError(f"{where}: column eval_type: `{texts['eval_type']}`; one of {', '.join(_EVAL_TYPES)}")
    return Instance(
        instance_id=instance_id,
        **texts,
        fail_to_pass=_read_tests(row, "FAIL_TO_PASS", where),
        pass_to_pass=_read_tests(row, "PASS_TO_PASS", where),
        image=_read_text(row, "image", where) if row.get("image") is not None else None,
        difficulty=_read_text(row, "difficulty", where) if row.get("difficulty") is not None else "",
        tree=_read_tree(row, where),
    )


def _read_text(row: Mapping[str, Any], column: str, where: str) -> str:
    if row.get(column) is None:
        raise UserError(f"{where}: column `{column}` is missing{_advise(column)}")
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"{where}: column {column}: {type(value).__name__}; a string would be right")
    return value


def _advise(column: str) -> str:
    if column not in _GRADING_COLUMNS:
        return ""
    return "; rows of the SWE-bench 5.x format have it (SWE-bench/SWE-bench_Verified since its revision of 2026)"


def _read_tests(row: Mapping[str, Any], column: str, where: str) -> tuple[str, ...]:
    """Test names given as a list or, as on the hub, as a JSON string of one."""
    if row.get(column) is None:
        raise UserError(f"{where}: column `{column}` is missing")
    value = row[column]
    tests = _parse_json(value, f"{where}: column {column}") if isinstance(value, str) else value
    if not isinstance(tests, list | tuple) or not all(isinstance(test, str) for test in tests):
        raise UserError(f"{where}: column {column}: a list of test names would be right")
    return tuple(tests)


def _read_tree(row: Mapping[str, Any], where: str) -> Path | Mapping[str, str] | None:
    value = row.get("tree")
    if value is None:
        return None
    if isinstance(value, Mapping):
        return _read_files(value, where)
    if not isinstance(value, str | Path) or not Path(value).is_dir():
        raise UserError(f"{where}: column tree: `{value}` is not a folder; the base tree's folder would be right")
    return Path(value)


def _read_files(files: Mapping[Any, Any], where: str) -> Mapping[str, str]:
    for name, text in files.items():
        path = PurePosixPath(name if isinstance(name, str) else "")
        if not path.parts or path.is_absolute() or {"..", ".git"}.intersection(path.parts):
            raise UserError(f"{where}: column tree: `{name}`; a relative path inside the tree would be right")
        if not isinstance(text, str):
            raise UserError(f"{where}: column tree: {name}: {type(text).__name__}; the file's text would be right")
    return dict(files)
