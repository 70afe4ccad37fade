"""An agent of somebody else, run as a command inside the sandbox, with the model at its loopback device.

The command runs in `/testbed` and finds in its environment `SWEQ_BASE_URL` (also as `OPENAI_BASE_URL` and
`OPENAI_API_BASE`), `SWEQ_MODEL` (also `OPENAI_MODEL`), a meaningless `OPENAI_API_KEY`, `SWEQ_TASK_FILE` with the task
in words, and what `agent.external.env` adds. There is no other network. Budgets are kept at the forwarder: when one
ends, or the run does, the command is killed. The harness takes the diff whatever the end; the requests are the
trajectory.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.agent.conversations import Conversations
from harness.agent.forwarder import STOP_PATH, ChatRequest, Forwarder, RefusedError
from harness.agent.history import forget_future
from harness.agent.limit import Limit
from harness.agent.loop import AgentResult, step_seed
from harness.agent.model import LEAST_COMPLETION, ChatModel, ContextExceeded, Reply, RequestTimeoutError, Usage
from harness.agent.profiles import prompts_hash
from harness.agent.prompts import load_prompts
from harness.agent.snapshot import Snapshot
from harness.agent.trajectory import ActionRecord, Ending, Step, Trajectory
from harness.config import AgentConfig, ExternalConfig, SamplingConfig, describe
from harness.errors import EndpointError, SandboxError, UserError
from harness.files import replace_file
from harness.instances import Instance
from harness.sandbox.base import TESTBED, ExecResult, Sandbox

_PORT = 8377
_TASK_FILE = "/tmp/.sweq-task.md"
_CANNOT_RUN = (126, 127)
# The agent, and beside it a connection that the forwarder answers when the agent's time is over. Bash may forget a job
# that ends before it is waited for together with others, so that the agent is waited for alone.
_RUN = f"""
bash -c "$SWEQ_COMMAND" & agent=$!
{{ exec 3<>"/dev/tcp/127.0.0.1/$SWEQ_PORT" && printf 'GET {STOP_PATH} HTTP/1.0\\r\\n\\r\\n' >&3 && read -r line <&3
kill -9 "$agent"
}} > /dev/null 2>&1 & watch=$!
wait "$agent"
code=$?
kill "$watch" 2> /dev/null
exit "$code"
"""


class ExternalAgent:
    """The same face as `Agent`, over `agent.external.command`."""

    def __init__(self, model: ChatModel, config: AgentConfig, sampling: SamplingConfig, *, level: str = "") -> None:
        if config.external is None:
            raise UserError("agent.external: missing; it names the command of profile external")
        self._external: ExternalConfig = config.external
        self._model, self._config, self._sampling, self._level = model, config, sampling, level

    def run(
        self,
        instance: Instance,
        sandbox: Sandbox,
        *,
        seed: int,
        trajectory_path: Path,
        on_step: Callable[[Step], None] | None = None,
    ) -> AgentResult:
        """See `Agent.run`. The command's output is kept beside the trajectory, in `agent_output.txt`.

        Raises `UserError` where the command cannot be run at all.
        """
        trajectory = Trajectory(self._describe(instance, seed))
        desk = _Desk(self._model, self._config, self._sampling, trajectory, seed, trajectory_path, on_step)
        start = time.monotonic()
        try:
            trajectory.info["history"] = asdict(forget_future(sandbox))
            snapshot = Snapshot.take(sandbox)
            done = self._work(instance, sandbox, desk)
            replace_file(trajectory_path.with_name("agent_output.txt"), done.output.encode("utf-8", "replace"))
            desk.settle(done)
            diff = snapshot.diff()
        except (EndpointError, SandboxError) as error:
            trajectory.ending = Ending(desk.limit, False, 0, error=f"{type(error).__name__}: {error}")
            trajectory.write(trajectory_path)
            raise
        seconds_model = sum(step.seconds_model for step in trajectory.steps)
        submitted = done.exit_code == 0 and desk.limit is Limit.NONE
        notes = diff.notes if done.exit_code == 0 else (*diff.notes, f"the agent ended with exit code {done.exit_code}")
        trajectory.ending = Ending(desk.limit, submitted, len(diff.patch.encode()), notes)
        trajectory.write(trajectory_path)
        return AgentResult(
            patch=diff.patch,
            limit=desk.limit,
            submitted=submitted,
            steps=len(trajectory.steps),
            usage=trajectory.usage,
            seconds_model=seconds_model,
            seconds_tools=max(time.monotonic() - start - seconds_model, 0.0),
            notes=notes,
        )

    def _work(self, instance: Instance, sandbox: Sandbox, desk: "_Desk") -> ExecResult:
        """Run the command to its end, or to the end of its budget."""
        task = load_prompts("external").fill("task", issue=instance.problem_statement.strip(), testbed=TESTBED)
        sandbox.write_file(_TASK_FILE, task.encode("utf-8", "replace"))
        with Forwarder(sandbox.listen(_PORT), self._model.model_name, desk.ask) as forwarder:
            desk.on_end = forwarder.stopped.set
            environment = self._environment(forwarder.server_address[1])
            return sandbox.exec(_RUN, timeout=self._config.wall_clock, env=environment)

    def _environment(self, port: int) -> dict[str, str]:
        url, model = f"http://127.0.0.1:{port}/v1", self._model.model_name
        return {
            "SWEQ_BASE_URL": url,
            "SWEQ_MODEL": model,
            "SWEQ_TASK_FILE": _TASK_FILE,
            "SWEQ_PORT": str(port),
            "SWEQ_COMMAND": self._external.command,
            "OPENAI_BASE_URL": url,
            "OPENAI_API_BASE": url,
            "OPENAI_API_KEY": "sweq",
            "OPENAI_MODEL": model,
            **self._external.env,
        }

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


class _Desk:
    """Answers the agent's requests within its budgets, and writes them down. Called from many threads."""

    def __init__(
        self,
        model: ChatModel,
        config: AgentConfig,
        sampling: SamplingConfig,
        trajectory: Trajectory,
        seed: int,
        path: Path,
        on_step: Callable[[Step], None] | None,
    ) -> None:
        self.limit = Limit.NONE
        self.on_end: Callable[[], None] = lambda: None
        self._model, self._config, self._sampling, self._seed = model, config, sampling, seed
        self._trajectory, self._path, self._on_step = trajectory, path, on_step
        self._context = config.context_limit or model.max_context
        self._deadline = time.monotonic() + config.wall_clock
        self._conversations = Conversations()
        self._lock = threading.Lock()
        self._started = 0
        self._context_refused = False
        self._failure: EndpointError | None = None

    def ask(self, request: ChatRequest) -> Reply:
        """The model's answer; raises `RefusedError` where a budget or the server forbids one."""
        number, room = self._admit(request)
        try:
            reply = self._model.complete(
                request.messages,
                request.tools,
                seed=step_seed(self._seed, number),
                max_tokens=room,
                timeout=max(self._deadline - time.monotonic(), 1.0),
            )
            with self._lock:
                self._record(request, reply, number)
        except ContextExceeded as error:
            raise self._refuse_context(str(error)) from error
        except EndpointError as error:
            raise self._fail(error) from error
        return reply

    def settle(self, done: ExecResult) -> None:
        """Say how the work ended; raises what kept the machine, rather than the agent, from working."""
        if self._failure is not None:
            raise self._failure
        if done.timed_out:
            self.limit = Limit.WALL_CLOCK if self.limit is Limit.NONE else self.limit
        elif self.limit is Limit.NONE and self._context_refused:
            self.limit = Limit.CONTEXT
        elif self.limit is Limit.NONE and not self._trajectory.steps:
            said = done.output.strip().splitlines()[-1:] or ["no output"]
            problem = f"ended with exit code {done.exit_code} before it asked the model anything: {said[0][:500]}"
            raise (UserError if done.exit_code in _CANNOT_RUN else SandboxError)(f"agent.external.command: {problem}")

    def _admit(self, request: ChatRequest) -> tuple[int, int]:
        """The request's number, from 1, and the room for its answer in tokens."""
        with self._lock:
            if self.limit is Limit.NONE and self._failure is None:
                self.limit = self._spent()
            if self.limit is not Limit.NONE or self._failure is not None:
                self.on_end()
                raise RefusedError(403, "budget_spent", f"no more requests: {self._failure or self.limit}")
            _, before = self._conversations.find(request.messages)
            self._started += 1
            number = self._started
        room = min(self._sampling.max_tokens, request.max_tokens or self._sampling.max_tokens)
        if self._context and before:
            if before.total >= self._context:
                raise self._refuse_context(f"maximum context length is {self._context} tokens")
            room = min(room, max(self._context - before.total, LEAST_COMPLETION))
        return number, room

    def _spent(self) -> Limit:
        if time.monotonic() >= self._deadline:
            return Limit.WALL_CLOCK
        if self._started >= self._config.step_limit:
            return Limit.STEPS
        if self._trajectory.new_tokens >= self._config.token_limit:
            return Limit.TOKENS
        return Limit.NONE

    def _refuse_context(self, message: str) -> RefusedError:
        """The agent may shorten its history and go on; if it ends instead, the context was the limit."""
        self._context_refused = True
        return RefusedError(400, "context_length_exceeded", message)

    def _fail(self, error: EndpointError) -> RefusedError:
        """End the work: by the clock where there is no time left, else by a failure of the machine."""
        if isinstance(error, RequestTimeoutError) and time.monotonic() >= self._deadline:
            self.limit = Limit.WALL_CLOCK
        else:
            self._failure = error
        self.on_end()
        return RefusedError(403, "endpoint_failed", str(error))

    def _record(self, request: ChatRequest, reply: Reply, number: int) -> None:
        """Append what is new of the conversation, and its answer, to the history."""
        trajectory = self._trajectory
        known, before = self._conversations.find(request.messages)
        self._conversations.add(request.messages, reply.raw_message, reply.usage)
        self._context_refused = False
        trajectory.info.setdefault("tools", request.tools)
        trajectory.info["overridden"] = sorted({*trajectory.info.get("overridden", ()), *request.overridden})
        trajectory.messages.extend([*request.messages[known:], reply.raw_message])
        step = self._to_step(reply, number, before)
        trajectory.steps.append(step)
        trajectory.write(self._path)
        if self._on_step:
            self._on_step(step)

    def _to_step(self, reply: Reply, number: int, before: Usage | None) -> Step:
        actions = (ActionRecord(call.name, call.arguments, None, False, 0, 0.0) for call in reply.tool_calls)
        return Step(
            number=len(self._trajectory.steps) + 1,
            messages=len(self._trajectory.messages),
            seed=step_seed(self._seed, number),
            usage=reply.usage,
            max_tokens=reply.max_tokens,
            finish_reason=reply.finish_reason,
            seconds_model=reply.seconds,
            seconds_tools=0.0,
            actions=tuple(actions),
            format_error="",
            new_tokens=reply.usage.new_tokens(before),
        )
