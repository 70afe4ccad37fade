"""One task's two steps, each on disk before the next begins."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from harness.agent.external import ExternalAgent
from harness.agent.limit import Limit
from harness.agent.loop import Agent, AgentResult
from harness.agent.model import EndpointModel
from harness.agent.trajectory import Step
from harness.config import LevelConfig, RunConfig
from harness.grading.evaluate import Evaluation, evaluate
from harness.grading.patch import touched_paths
from harness.instances import Instance
from harness.run.outcome import Outcome
from harness.run.paths import TaskPaths
from harness.run.rows import TaskRow
from harness.run.store import read_json, read_text, write_json, write_text
from harness.run.tampering import find_tampering
from harness.sandbox.base import SandboxFactory


@dataclass(frozen=True)
class Task:
    """One (level, instance, repeat) of a run. `seed` is the same at every level, so that levels compare in pairs."""

    level: LevelConfig
    instance: Instance
    repeat: int
    seed: int
    paths: TaskPaths = field(repr=False)

    @property
    def key(self) -> tuple[str, str, int]:
        """The key of the task's row."""
        return (self.level.name, self.instance.instance_id, self.repeat)


@dataclass(frozen=True)
class Work:
    """What the agent did: the part of a `TaskRow` that is known before grading. Stored as `agent.json`."""

    limit: str = Limit.NONE
    submitted: bool = False
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds_agent: float = 0.0
    seconds_model: float = 0.0
    seconds_tools: float = 0.0
    attempts: int = 1


def derive_seed(run_seed: int, instance_id: str, repeat: int) -> int:
    """31 bits of a SHA-256, independent of level, order and machine."""
    digest = hashlib.sha256(f"{run_seed}/{instance_id}/{repeat}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def work(
    task: Task, config: RunConfig, model: EndpointModel, factory: SandboxFactory, on_step: Callable[[Step], None]
) -> Work:
    """Let the agent work in a fresh sandbox and put its patch on disk. Blocking.

    Raises `SandboxError` or `EndpointError` when the machine, not the model, failed.
    """
    start = time.monotonic()
    with factory.create(task.instance) as sandbox, model.session() as conversation:
        kind = ExternalAgent if config.agent.external else Agent
        agent = kind(conversation, config.agent, config.sampling, level=task.level.name)
        result = agent.run(
            task.instance, sandbox, seed=task.seed, trajectory_path=task.paths.trajectory, on_step=on_step
        )
    write_text(task.paths.patch, result.patch)
    return _summarise(result, time.monotonic() - start)


def _summarise(result: AgentResult, seconds: float) -> Work:
    return Work(
        limit=str(result.limit),
        submitted=result.submitted,
        steps=result.steps,
        prompt_tokens=result.usage.prompt_tokens,
        cached_tokens=result.usage.cached_tokens,
        completion_tokens=result.usage.completion_tokens,
        seconds_agent=seconds,
        seconds_model=result.seconds_model,
        seconds_tools=result.seconds_tools,
    )


def save_work(task: Task, done: Work) -> None:
    """Mark the agent's step as done; from here on only grading is left."""
    write_json(task.paths.agent, asdict(done))


def load_work(task: Task) -> Work | None:
    """The agent's finished step, or None where it has yet to be done."""
    return Work(**read_json(task.paths.agent)) if task.paths.agent.exists() else None


def grade(task: Task, factory: SandboxFactory, timeout: float, restore: bool = False) -> Evaluation:
    """Grade the stored patch in a fresh sandbox; log and official report entry are on disk afterwards. Blocking."""
    evaluation = evaluate(task.instance, read_text(task.paths.patch), factory, timeout=timeout, restore=restore)
    write_text(task.paths.test_output, evaluation.log)
    write_json(task.paths.report, evaluation.verdict.report())
    return evaluation


def is_doubtful(evaluation: Evaluation) -> bool:
    """Whether the machine may have decided: such a patch is graded once more before its verdict counts."""
    return evaluation.verdict.status == "timeout" or evaluation.verdict.infra_failure


def to_row(run_id: str, task: Task, done: Work, evaluation: Evaluation | None, infra_reason: str = "") -> TaskRow:
    """The task's row. Without an evaluation it ended by the wall clock, or, with `infra_reason`, by the machine.

    As in the official score, a log that cannot be graded is not resolved; its reason stays beside the verdict.
    """
    verdict = evaluation.verdict if evaluation else None
    patch = read_text(task.paths.patch) if task.paths.patch.exists() else ""
    flags, suspect = find_tampering(task.instance, patch, verdict, task.paths)
    return TaskRow(
        run_id=run_id,
        level=task.level.name,
        quant=task.level.quant or "",
        instance_id=task.instance.instance_id,
        repo=task.instance.repo,
        difficulty=task.instance.difficulty,
        repeat=task.repeat,
        outcome=_find_outcome(evaluation, infra_reason),
        resolved=verdict is not None and verdict.resolved,
        resolved_v4=verdict is not None and verdict.resolved_v4,
        seconds_grading=evaluation.seconds if evaluation else 0.0,
        patch_bytes=len(patch.encode("utf-8", "surrogateescape")),
        files_touched=len(touched_paths(patch)),
        infra_reason=infra_reason or _find_doubt(evaluation),
        seed=task.seed,
        flags=flags,
        suspect=suspect,
        **asdict(done),
    )


def _find_outcome(evaluation: Evaluation | None, infra_reason: str) -> Outcome:
    if evaluation is None:
        return Outcome.INFRA_ERROR if infra_reason else Outcome.WALL_CLOCK
    status = evaluation.verdict.status
    return Outcome.UNRESOLVED if status in ("timeout", "ungradable") else Outcome(status)


def _find_doubt(evaluation: Evaluation | None) -> str:
    if evaluation is None or evaluation.verdict.status in ("resolved", "empty_patch", "patch_failed"):
        return ""
    if evaluation.verdict.status == "timeout":
        return "tests_timed_out"
    if evaluation.verdict.status == "ungradable":
        return evaluation.verdict.infra_failure_reason or "ungradable_log"
    return evaluation.verdict.infra_failure_reason or ""
