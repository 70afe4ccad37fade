"""Grading without an agent: a predictions file becomes a run directory and the official run report."""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from harness.config import ImagesConfig
from harness.errors import SandboxError, UserError
from harness.files import replace_file
from harness.grading.logs import find_parser
from harness.grading.predictions import Prediction, read_predictions, write_predictions
from harness.grading.results import Graded, grade_all, is_finished
from harness.grading.run_report import build_run_report, render_run_report
from harness.grading.tamper import inspect_patch
from harness.grading.verdict import judge, judge_log
from harness.instances import Instance, dataset_hash, load_instances, select_instances
from harness.sandbox.base import Sandbox, SandboxFactory
from harness.sandbox.images.choice import make_supply
from harness.sandbox.select import choose


def grade(
    dataset: str,
    predictions: str,
    ids: Sequence[str] = (),
    run_id: str | None = None,
    *,
    sandbox: Literal["auto", "docker", "namespace"] = "auto",
    workers: int = 2,
    timeout: float = 1_800.0,
    results: Path = Path("results/runs"),
    as_json: bool = False,
    images: ImagesConfig | None = None,
    restore: bool = False,
    echo: Callable[[str], None] = print,
) -> int:
    """Grade `predictions` (see `read_predictions`) of the instances that `ids` names, all if it is empty.

    Writes `<results>/<run_id>/`: `grade.json` (what was graded), `predictions.jsonl`, `instances/...` and the official
    run report `<model>.<run_id>.json`, whose counts go to `echo` (the whole report as JSON with `as_json`). Without a
    run id it follows from the content of dataset and predictions, so that the same command continues.
    With `restore` test files are put back by our own hand (`harness.grading.patch.restore_tests`).
    `images` says where missing images come from (None: none may be missing); the identity of each that was used goes
    to `images.json`. Returns the exit status: 1 when a sandbox failed, so that running the command again is worthwhile.
    """
    instances, answers = _read_input(dataset, predictions, ids)
    run_id = run_id or _derive_run_id(predictions, instances, answers)
    root = results / run_id
    record = describe_dataset(dataset, instances) | {"predictions": predictions, "restore_tests": restore}
    claim(root, "grade.json", record)
    write_predictions(root / "predictions.jsonl", answers.values())
    images = images or ImagesConfig()
    graded = _grade_with_progress(instances, answers, root, sandbox, workers, timeout, images, restore)
    report = build_run_report([instance.instance_id for instance in instances], graded)
    model = next(iter(answers.values())).model_name_or_path.replace("/", "__")
    path = root / f"{model}.{run_id}.json"
    replace_file(path, (json.dumps(report, indent=4) + "\n").encode())
    notes = [*_note_flags(instances, answers, graded), f"Report: {path}"]
    if restore:
        notes.insert(0, "Test files were restored by hand before the tests (--restore-tests): not the official way.")
    lines = [json.dumps(report, indent=4)] if as_json else [*render_run_report(report, graded), *notes]
    for line in lines:
        echo(line)
    return 1 if any(item.verdict is None for item in graded.values()) else 0


def regrade(dataset: str, instance_id: str, log_file: Path, patch_file: Path | None = None) -> dict[str, Any]:
    """The verdict on a stored log as JSON-ready data: official report fields, `status` and `resolved_v4`.

    Without `patch_file` the patch is taken to exist. Needs no sandbox and no network.
    """
    instance = load_instances(dataset, [instance_id])[0]
    log = _read_text(log_file)
    verdict = judge(instance, log, _read_text(patch_file)) if patch_file else judge_log(instance, log)
    entry = {"tests_status": None, **verdict.report()[instance_id]}
    return {"instance_id": instance_id, "status": verdict.status, "resolved_v4": verdict.resolved_v4, **entry}


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a stored log or patch would be right") from error


def _read_input(dataset: str, predictions: str, ids: Sequence[str]) -> tuple[list[Instance], dict[str, Prediction]]:
    everything = load_instances(dataset)
    instances = select_instances(everything, ids, dataset)
    for instance in instances:
        find_parser(instance.log_parser, f"{dataset}: {instance.instance_id}: column log_parser")
    given = {answer.instance_id: answer for answer in read_predictions(predictions, everything)}
    selected = [instance.instance_id for instance in instances]
    answers = {name: given[name] for name in selected if name in given}
    if not answers:
        raise UserError(f"{predictions}: no prediction for the instances asked for: {', '.join(ids)}")
    return instances, answers


def _derive_run_id(predictions: str, instances: Sequence[Instance], answers: dict[str, Prediction]) -> str:
    content = [dataset_hash(instances), *(asdict(answer) for answer in answers.values())]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"grade-{Path(predictions).stem}-{digest[:12]}"


def _note_flags(instances: Sequence[Instance], answers: dict[str, Prediction], graded: dict[str, Graded]) -> list[str]:
    """Lines on patches that meddle with tests, and on verdicts in which the graders 5.x and 4.1 differ."""
    flagged, suspects, differing = [], [], []
    for instance in instances:
        found = graded.get(instance.instance_id)
        verdict = found.verdict if found else None
        if verdict is None or not verdict.patch_exists:
            continue
        signs = inspect_patch(instance, answers[instance.instance_id].model_patch or "")
        if signs.flags:
            flagged.append(f"{instance.instance_id} ({', '.join(sorted(signs.flags))})")
        if signs.is_suspect(resolved=verdict.resolved or verdict.resolved_v4):
            suspects.append(instance.instance_id)
        if verdict.resolved != verdict.resolved_v4:
            differing.append(f"{instance.instance_id} ({'resolved' if verdict.resolved_v4 else 'not resolved'} in 4.1)")
    said = (("Flagged patches", flagged), ("Suspect", suspects), ("Graders 5.x and 4.1 differ on", differing))
    return [f"{words}: {', '.join(names)}" for words, names in said if names]


def describe_dataset(dataset: str, instances: Sequence[Instance]) -> dict[str, Any]:
    """What a grading run keeps of its rows."""
    return {"dataset": dataset, "dataset_sha256": dataset_hash(instances)}


def claim(root: Path, name: str, record: dict[str, Any]) -> None:
    """Record in file `name` what this run directory grades; one that holds something else is refused."""
    path = root / name
    if not path.exists():
        if root.exists() and any(root.iterdir()):
            raise UserError(f"{root}: holds something other than a grading run; choose another --run-id")
        replace_file(path, (json.dumps(record, indent=2) + "\n").encode())
        return
    stored = {"restore_tests": False, **json.loads(path.read_text())}
    for key, value in record.items():
        if stored.get(key) != value:
            raise UserError(f"{path}: key {key}: is `{stored.get(key)}`, now `{value}`; choose another --run-id")


class NoSandbox:
    """Stands in where nothing is left to run, so that stored results and empty patches need no daemon and no kernel."""

    name = "none"

    def create(self, instance: Instance) -> Sandbox:
        """Raises `SandboxError`: nobody should ask."""
        raise SandboxError(f"{instance.instance_id}: no sandbox was prepared")


class ImageRecord:
    """`images.json` of a grading run: the identity of each instance's image."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._images: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}

    def note(self, instance_id: str, identity: dict[str, str]) -> None:
        """Keep the identity of the image that `instance_id` ran in."""
        with self._lock:
            self._images[instance_id] = identity
            replace_file(self._path, (json.dumps(self._images, indent=2) + "\n").encode())


def _grade_with_progress(
    instances: Sequence[Instance],
    answers: dict[str, Prediction],
    root: Path,
    sandbox: Literal["auto", "docker", "namespace"],
    workers: int,
    timeout: float,
    images: ImagesConfig,
    restore: bool,
) -> dict[str, Graded]:
    answered = [instance for instance in instances if instance.instance_id in answers]
    left = [item for item in answered if answers[item.instance_id].model_patch and not is_finished(root, item)]
    supplied = images.source != "local"
    factory: SandboxFactory = choose(sandbox, left, supplied=supplied) if left else NoSandbox()
    record = ImageRecord(root / "images.json")
    with tqdm(total=len(answered), desc="grading", unit="instance") as bar:
        supply = make_supply(images, factory, left, bar.write, record.note)

        def advance(instance_id: str, graded: Graded) -> None:
            bar.update()
            bar.set_postfix_str(f"{instance_id} {graded.verdict.status if graded.verdict else 'sandbox failed'}")

        try:
            ordered = supply.order(answered)
            supply.prefetch([item for item in ordered if item in left])
            graded = grade_all(
                ordered,
                answers,
                factory,
                root,
                supply=supply,
                workers=workers,
                timeout=timeout,
                restore=restore,
                on_graded=advance,
            )
        finally:
            supply.close()
    return {item.instance_id: graded[item.instance_id] for item in answered}
