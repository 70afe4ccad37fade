"""Graded predictions on disk: `instances/<id>/0/{patch.diff, test_output.txt, report.json}` of a run directory.

`report.json` is written last: where it exists the instance is done, and its verdict is read again from the log.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from harness.errors import SandboxError, UserError
from harness.files import replace_file
from harness.grading.evaluate import Evaluation, evaluate, evaluate_unpatched
from harness.grading.patch import encode
from harness.grading.predictions import Prediction
from harness.grading.verdict import InfraSign, Verdict, find_infra_sign, judge, judge_log
from harness.instances import Instance
from harness.sandbox.base import ImageSupply, SandboxFactory


@dataclass(frozen=True)
class Graded:
    """How one prediction ended. `verdict` is None when the sandbox failed; the same command then tries it again.

    `sign` is what the log, or the sandbox's error in `problem`, shows of a broken environment.
    """

    verdict: Verdict | None
    sign: InfraSign | None
    problem: str = ""


def grade_all(
    instances: Sequence[Instance],
    predictions: Mapping[str, Prediction],
    factory: SandboxFactory,
    root: Path,
    *,
    supply: ImageSupply | None = None,
    workers: int,
    timeout: float,
    restore: bool = False,
    on_graded: Callable[[str, Graded], None],
) -> dict[str, Graded]:
    """Grade the prediction of each of `instances`, `workers` at a time; results by instance id, in their order.

    Raises `UserError` as soon as one instance cannot be graded here; what is finished by then stays on disk.
    """
    graded: dict[str, Graded] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        jobs = {
            pool.submit(
                grade_instance,
                instance,
                predictions[instance.instance_id],
                factory,
                root,
                timeout=timeout,
                supply=supply,
                restore=restore,
            ): instance.instance_id
            for instance in instances
        }
        try:
            for job in as_completed(jobs):
                graded[jobs[job]] = job.result()
                on_graded(jobs[job], graded[jobs[job]])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return {instance.instance_id: graded[instance.instance_id] for instance in instances}


def grade_instance(
    instance: Instance,
    prediction: Prediction,
    factory: SandboxFactory,
    root: Path,
    *,
    timeout: float,
    supply: ImageSupply | None = None,
    restore: bool = False,
) -> Graded:
    """Grade one prediction, or read what an earlier run left of it under `root`.

    Where there is a `supply`, it brings the image that the tests need; an empty patch needs none.
    """
    folder = _folder(root, instance)
    patch = prediction.model_patch
    if is_finished(root, instance):
        log = _read_stored(folder, patch)
        return Graded(judge(instance, log, patch), find_infra_sign(log))
    try:
        with supply.hold(instance) if supply is not None and patch else contextlib.nullcontext():
            evaluation = evaluate(instance, patch, factory, timeout=timeout, restore=restore)
    except SandboxError as error:
        return Graded(None, find_infra_sign(str(error)), str(error))
    return _keep(folder, patch or "", evaluation)


def grade_unpatched(
    instance: Instance, factory: SandboxFactory, root: Path, *, timeout: float, supply: ImageSupply | None = None
) -> Graded:
    """Judge the instance's tests on its unpatched tree, or read what an earlier run left of that under `root`."""
    folder = _folder(root, instance)
    if is_finished(root, instance):
        log = _read_stored(folder, "")
        return Graded(judge_log(instance, log), find_infra_sign(log))
    try:
        with supply.hold(instance) if supply is not None else contextlib.nullcontext():
            evaluation = evaluate_unpatched(instance, factory, timeout=timeout)
    except SandboxError as error:
        return Graded(None, find_infra_sign(str(error)), str(error))
    return _keep(folder, "", evaluation)


def _keep(folder: Path, patch: str, evaluation: Evaluation) -> Graded:
    replace_file(folder / "patch.diff", encode(patch))
    replace_file(folder / "test_output.txt", evaluation.log.encode("utf-8", "replace"))
    replace_file(folder / "report.json", (json.dumps(evaluation.verdict.report(), indent=4) + "\n").encode())
    return Graded(evaluation.verdict, find_infra_sign(evaluation.log))


def is_finished(root: Path, instance: Instance) -> bool:
    """Whether the run under `root` has already graded `instance`."""
    return (_folder(root, instance) / "report.json").exists()


def _folder(root: Path, instance: Instance) -> Path:
    return root / "instances" / instance.instance_id / "0"


def _read_stored(folder: Path, patch: str | None) -> str:
    if (folder / "patch.diff").read_bytes() != encode(patch or ""):
        raise UserError(f"{folder / 'patch.diff'}: this run id graded another patch; choose another --run-id")
    return (folder / "test_output.txt").read_bytes().decode("utf-8", "replace")
