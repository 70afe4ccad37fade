"""A patch is tried in a fresh sandbox: applied, tested, judged."""

import time
from dataclasses import dataclass

from harness.grading.logs import find_parser
from harness.grading.patch import apply_patch
from harness.grading.verdict import PATCH_FAILED, TIMED_OUT, Verdict, instrument, judge
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


def evaluate(instance: Instance, patch: str | None, factory: SandboxFactory, *, timeout: float = 1_800.0) -> Evaluation:
    """Apply `patch` to a fresh sandbox of `instance`, run its eval script for at most `timeout` seconds, judge the log.

    An empty patch needs no sandbox. Raises `SandboxError` when the sandbox itself fails, and `UserError` when the
    instance names an unknown log parser or cannot run in this kind of sandbox.
    """
    find_parser(instance.log_parser, instance.instance_id)
    if not patch:
        return Evaluation(judge(instance, "", patch), "", 0.0)
    started = time.monotonic()
    with factory.create(instance) as sandbox:
        application = apply_patch(sandbox, patch)
        if application.applied:
            log = _run_tests(sandbox, instance, timeout)
        else:
            log = f"{PATCH_FAILED}:\n{application.output}"
    return Evaluation(judge(instance, log, patch), log, time.monotonic() - started)


def _run_tests(sandbox: Sandbox, instance: Instance, timeout: float) -> str:
    sandbox.write_file(EVAL_PATH, instrument(instance.eval_script).encode(), mode=0o755)
    result = sandbox.exec(f"/bin/bash {EVAL_PATH}", timeout=timeout, output_limit=LOG_LIMIT)
    if not result.timed_out:
        return result.output
    # The first line is swebench's; the marker keeps a log that was complete before the limit from being graded.
    return f"{result.output}\n\nTimeout error: {timeout:g} seconds exceeded.\n{TIMED_OUT}\n"
