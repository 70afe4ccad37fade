"""The agent's loop: ask, act, observe, until the model submits or a budget ends."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.agent.editor import EditorCall
from harness.agent.history import forget_future
from harness.agent.limit import Limit
from harness.agent.model import LEAST_COMPLETION, ChatModel, ContextExceeded, Reply, RequestTimeoutError, Usage
from harness.agent.profiles import FormatError, Profile, choose_profile, prompts_hash
from harness.agent.sandbox_files import shorten
from harness.agent.snapshot import Diff, Snapshot
from harness.agent.tools import Action, Bash, Edit, Observation, Submit, perform
from harness.agent.trajectory import ActionRecord, Ending, Step, Trajectory
from harness.config import AgentConfig, SamplingConfig, describe
from harness.errors import EndpointError, SandboxError
from harness.instances import Instance
from harness.sandbox.base import TESTBED, Sandbox

_CHARACTERS_PER_TOKEN = 3
"""Low on purpose: an estimate that is too long costs some room for the answer, one too short a refused request."""


@dataclass(frozen=True)
class AgentResult:
    """What an agent leaves behind: the harness's diff, and what it took. `notes` say what the diff does not hold."""

    patch: str
    limit: Limit
    submitted: bool
    steps: int
    usage: Usage
    seconds_model: float
    seconds_tools: float
    notes: tuple[str, ...] = ()


class Agent:
    """A model with a profile and budgets; one object works on many tasks, from many threads."""

    def __init__(self, model: ChatModel, config: AgentConfig, sampling: SamplingConfig, *, level: str = "") -> None:
        self._model = model
        self._config = config
        self._sampling = sampling
        self._level = level

    def run(
        self,
        instance: Instance,
        sandbox: Sandbox,
        *,
        seed: int,
        trajectory_path: Path,
        on_step: Callable[[Step], None] | None = None,
    ) -> AgentResult:
        """Work on `instance` until the model submits or a budget ends; the diff is taken whatever the end.

        The trajectory is on disk after every step, before `on_step` is called. Raises `EndpointError` or
        `SandboxError`, with the trajectory saying so, when the machine rather than the model fails.
        """
        trajectory = Trajectory(self._describe(instance, seed))
        task = _Task(self._model, self._config, self._sampling, sandbox, trajectory, seed)
        try:
            trajectory.info["history"] = asdict(forget_future(sandbox))
            snapshot = Snapshot.take(sandbox)
            task.begin(instance, snapshot)
            while not task.ended:
                step = task.step()
                trajectory.write(trajectory_path)
                if step and on_step:
                    on_step(step)
            diff = snapshot.diff()
        except (EndpointError, SandboxError) as error:
            trajectory.ending = Ending(task.limit, task.submitted, 0, error=f"{type(error).__name__}: {error}")
            trajectory.write(trajectory_path)
            raise
        trajectory.ending = Ending(task.limit, task.submitted, len(diff.patch.encode()), diff.notes)
        trajectory.write(trajectory_path)
        return _to_result(task, diff)

    def _describe(self, instance: Instance, seed: int) -> dict[str, Any]:
        return {
            "instance_id": instance.instance_id,
            "level": self._level,
            "model": self._model.model_name,
            "max_context": self._model.max_context,
            "seed": seed,
            "agent": describe(self._config),
            "sampling": describe(self._sampling),
            "prompts_hash": prompts_hash(self._config.profile),
        }


def step_seed(seed: int, number: int) -> int:
    """The seed of step `number` of a task: 31 bits that depend on both, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big") & 0x7FFFFFFF


def _to_result(task: "_Task", diff: Diff) -> AgentResult:
    steps = task.trajectory.steps
    return AgentResult(
        patch=diff.patch,
        limit=task.limit,
        submitted=task.submitted,
        steps=len(steps),
        usage=task.trajectory.usage,
        seconds_model=sum(step.seconds_model for step in steps),
        seconds_tools=sum(step.seconds_tools for step in steps),
        notes=diff.notes,
    )


class _Task:
    """The state of one conversation. The history only ever grows at its end, so that prefix caches serve all of it."""

    def __init__(
        self,
        model: ChatModel,
        config: AgentConfig,
        sampling: SamplingConfig,
        sandbox: Sandbox,
        trajectory: Trajectory,
        seed: int,
    ) -> None:
        self.trajectory = trajectory
        self.limit = Limit.NONE
        self.submitted = False
        self._model = model
        self._config = config
        self._sampling = sampling
        self._sandbox = sandbox
        self._seed = seed
        self._profile: Profile = choose_profile(config.profile)
        self._context = config.context_limit or model.max_context
        self._deadline = time.monotonic() + config.wall_clock
        self._format_errors = 0
        self._reviewed_at: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the model has submitted or a budget has run out."""
        return self.submitted or self.limit is not Limit.NONE

    def begin(self, instance: Instance, snapshot: Snapshot) -> None:
        """Open the history: the system message, the worked example of profiles that have one, the task."""
        self._snapshot = snapshot
        task = self._profile.prompts.fill(
            "task",
            issue=instance.problem_statement.strip(),
            testbed=TESTBED,
            step_limit=self._config.step_limit,
            command_timeout=f"{self._config.command_timeout:g}",
        )
        self._say("system", self._profile.prompts.fill("system", testbed=TESTBED))
        self.trajectory.messages.extend(self._profile.prompts.demonstration)
        self._say("user", task)

    def step(self) -> Step | None:
        """One model call and what follows from it; None where a budget forbids the call."""
        self.limit = self._spent()
        reply = None if self.ended else self._ask()
        if reply is None:
            return None
        self.trajectory.messages.append(self._profile.history(reply))
        start = time.monotonic()
        problem = ""
        actions: tuple[ActionRecord, ...] = ()
        try:
            actions = self._act(self._profile.parse(reply))
        except FormatError as error:
            problem = str(error)
            self._say("user", self._describe_format_error(reply, problem))
        self._count_format_error(reply, bool(problem) or all(action.kind == "misuse" for action in actions))
        step = self._record(reply, actions, problem, time.monotonic() - start)
        self.trajectory.steps.append(step)
        return step

    def _spent(self) -> Limit:
        """The budget that forbids another step, if any."""
        steps, config = self.trajectory.steps, self._config
        if time.monotonic() >= self._deadline:
            return Limit.WALL_CLOCK
        if len(steps) >= config.step_limit:
            return Limit.STEPS
        if self.trajectory.new_tokens >= config.token_limit:
            return Limit.TOKENS
        if self._context and steps and steps[-1].usage.total >= self._context:
            return Limit.CONTEXT
        return Limit.NONE

    def _ask(self) -> Reply | None:
        """The model's next answer, or None with `limit` set."""
        left = self._deadline - time.monotonic()
        try:
            return self._model.complete(
                self.trajectory.messages,
                self._profile.tools,
                seed=step_seed(self._seed, len(self.trajectory.steps) + 1),
                max_tokens=self._room(),
                timeout=left,
            )
        except ContextExceeded:
            self.limit = Limit.CONTEXT
        except RequestTimeoutError:
            if time.monotonic() < self._deadline:
                raise
            self.limit = Limit.WALL_CLOCK
        return None

    def _room(self) -> int:
        """Tokens left for the answer: the last step's own count, and an estimate of what was added since."""
        most = self._sampling.max_tokens
        if not self._context:
            return most
        messages, steps = self.trajectory.messages, self.trajectory.steps
        known = steps[-1].usage.total if steps else 0
        answered = (i + 1 for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant")
        start = next(answered) if steps else 0
        added = sum(len(str(message["content"])) for message in messages[start:])
        room = self._context - known - added // _CHARACTERS_PER_TOKEN
        return min(most, max(room, LEAST_COMPLETION))

    def _act(self, actions: list[Action]) -> tuple[ActionRecord, ...]:
        """Carry out the actions in order, up to a submission, and put their observations into the history."""
        observations: list[Observation] = []
        records: list[ActionRecord] = []
        for action in actions:
            start = time.monotonic()
            timeout = max(1.0, min(self._config.command_timeout, self._deadline - start))
            observation = self._carry_out(action, timeout)
            observations.append(observation)
            records.append(_to_record(action, observation, time.monotonic() - start))
            if observation.submitted:
                self.submitted = True
                break
        messages = self._profile.observe(actions[: len(observations)], observations)
        self._warn(messages)
        self.trajectory.messages.extend(messages)
        return tuple(records)

    def _carry_out(self, action: Action, timeout: float) -> Observation:
        """Do it, except for the first submission of a profile that reviews: that one shows the diff and a check list.

        Another submission of the same answer cannot have read it, and does not end the work either.
        """
        number = len(self.trajectory.steps) + 1
        if isinstance(action, Submit) and self._profile.reviews and self._reviewed_at in (None, number):
            self._reviewed_at = number
            return self._review()
        return perform(action, self._sandbox, self._config, self._profile.prompts, timeout=timeout)

    def _review(self) -> Observation:
        diff = self._snapshot.diff()
        shown, dropped = shorten(diff.patch.rstrip("\n"), self._config.observation_limit)
        notes = "".join(f"\n({note})" for note in diff.notes)
        return Observation(
            self._profile.prompts.fill("review", diff=(shown or "(no changes)") + notes), dropped=dropped
        )

    def _warn(self, messages: list[dict[str, Any]]) -> None:
        """Say once, with a tenth of the steps left, that the end is near."""
        left = self._config.step_limit - len(self.trajectory.steps) - 1
        if left == max(1, self._config.step_limit // 10) and not self.submitted:
            messages[-1]["content"] += "\n" + self._profile.prompts.fill("steps_left", steps=left)

    def _describe_format_error(self, reply: Reply, problem: str) -> str:
        if reply.finish_reason == "length":
            return self._profile.prompts.fill("length_error", max_tokens=reply.max_tokens)
        return self._profile.prompts.fill("format_error", problem=problem)

    def _count_format_error(self, reply: Reply, malformed: bool) -> None:
        """End on too many malformed answers in a row. One cut short for want of context is the context's fault."""
        self._format_errors = self._format_errors + 1 if malformed else 0
        if malformed and reply.finish_reason == "length" and reply.max_tokens < self._sampling.max_tokens:
            self.limit = Limit.CONTEXT
        elif self._format_errors >= self._config.format_error_limit:
            self.limit = Limit.FORMAT

    def _record(self, reply: Reply, actions: tuple[ActionRecord, ...], problem: str, seconds: float) -> Step:
        number = len(self.trajectory.steps) + 1
        return Step(
            number=number,
            messages=len(self.trajectory.messages),
            seed=step_seed(self._seed, number),
            usage=reply.usage,
            max_tokens=reply.max_tokens,
            finish_reason=reply.finish_reason,
            seconds_model=reply.seconds,
            seconds_tools=seconds,
            actions=actions,
            format_error=problem,
            new_tokens=reply.usage.new_tokens(self.trajectory.steps[-1].usage if number > 1 else None),
        )

    def _say(self, role: str, content: str) -> None:
        self.trajectory.messages.append({"role": role, "content": content})


def _to_record(action: Action, observation: Observation, seconds: float) -> ActionRecord:
    kind, subject = _name(action)
    return ActionRecord(
        kind=kind,
        subject=subject,
        exit_code=observation.exit_code,
        timed_out=observation.timed_out,
        dropped=observation.dropped,
        seconds=seconds,
    )


def _name(action: Action) -> tuple[str, str]:
    """Kind and subject of an action's record."""
    if isinstance(action, EditorCall):
        return "editor", f"{action.command} {action.path}"
    subject = action.command if isinstance(action, Bash) else action.path if isinstance(action, Edit) else ""
    return type(action).__name__.lower(), subject
