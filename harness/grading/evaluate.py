"""A patch is tried in a fresh sandbox: applied, tested, judged."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.errors import SandboxError
from harness.grading.logs import find_parser
from harness.grading.patch import apply_patch, restore_tests
from harness.grading.verdict import PATCH_FAILED, TIMED_OUT, Verdict, instrument, judge, judge_log
from harness.instances import Instance
from harness.sandbox.base import Sandbox, SandboxFactory

# swebench writes /eval.sh, but not every sandbox lets its root folder be written.
EVAL_PATH = "/tmp/eval.sh"
LOG_LIMIT = 64 << 20


@dataclass(frozen=True)
class Evaluation:
    """The verdict, the log it rests on (judging that log again gives the same verdict), and the time taken."""

    verdict: Verdict
    log: str
    seconds: float


def evaluate(
    instance: Instance,
    patch: str | None,
    factory: SandboxFactory,
    *,
    timeout: float = 1_800.0,
    restore: bool = False,
) -> Evaluation:
    """Apply `patch` to a fresh sandbox of `instance`, run its eval script for at most `timeout` seconds, judge the log.

    With `restore` the files of the test patch are put back first (`restore_tests`), which the official grader does not
    manage everywhere. An empty patch needs no sandbox. Raises `SandboxError` when the sandbox itself fails, and
    `UserError` when the instance names an unknown log parser or cannot run in this kind of sandbox.
    """
    find_parser(instance.log_parser, instance.instance_id)
    if not patch:
        return Evaluation(judge(instance, "", patch), "", 0.0)
    started = time.monotonic()
    with _open(factory, instance) as sandbox:
        application = apply_patch(sandbox, patch)
        if application.applied:
            if restore:
                restore_tests(sandbox, instance.test_patch, instance.base_commit)
            log = _run_tests(sandbox, instance, timeout)
        else:
            log = f"{PATCH_FAILED}:\n{application.output}"
    return Evaluation(judge(instance, log, patch), log, time.monotonic() - started)


def evaluate_unpatched(instance: Instance, factory: SandboxFactory, *, timeout: float = 1_800.0) -> Evaluation:
    """Run the eval script on the tree as it is, which the official grader never does. Raises as `evaluate`."""
    find_parser(instance.log_parser, instance.instance_id)
    started = time.monotonic()
    with _open(factory, instance) as sandbox:
        log = _run_tests(sandbox, instance, timeout)
    return Evaluation(judge_log(instance, log), log, time.monotonic() - started)


@contextmanager
def _open(factory: SandboxFactory, instance: Instance) -> Iterator[Sandbox]:
    """A fresh sandbox in which nothing of the model has run: a file that cannot be written is the machine's failure."""
    try:
        with factory.create(instance) as sandbox:
            yield sandbox
    except OSError as error:
        raise SandboxError(f"{instance.instance_id}: {' '.join(str(error).split())}") from error


def _run_tests(sandbox: Sandbox, instance: Instance, timeout: float) -> str:
    sandbox.write_file(EVAL_PATH, instrument(instance.eval_script).encode(), mode=0o755)
    result = sandbox.exec(f"/bin/bash {EVAL_PATH}", timeout=timeout, output_limit=LOG_LIMIT)
    if not result.timed_out:
        return result.output
    # The first line is swebench's; the marker keeps a log that was complete before the limit from being graded.
    return f"{result.output}\n\nTimeout error: {timeout:g} seconds exceeded.\n{TIMED_OUT}\n"
