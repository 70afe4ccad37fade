"""The bridge between the asyncio server and the engine's step loop, which runs on a thread of its own."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from engine.core.request import Request, StepOutput
from engine.errors import LostRankError, UserError
from engine.serve.meter import Meter, Stopwatch
from engine.serve.service import Service, StepEngine

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "closed"]

FAILED = ("error", "abort")
"""Finish reasons that end a request with all its choices."""


class Stream:
    """The outputs of one request, for one reader.

    Asynchronous iteration gives everything that is ready of one choice as one merged StepOutput, so a slow reader holds
    one entry a choice that grows at most to the completion, and never blocks the engine or another reader. Ends after
    each of the `choices` had an output with a `finish_reason`, or one of them failed; `rejection` is set when the
    engine refused the request itself. `close` (or leaving the `with` block) aborts the request unless it has finished.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None], choices: int = 1) -> None:
        self.request_id = request_id
        self.watch = Stopwatch(time.monotonic())
        self.rejection: UserError | None = None
        self._abort = abort
        self._pending: dict[int, list[StepOutput]] = {}
        self._reader: asyncio.Future[None] | None = None
        self._open = set(range(choices))

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> StepOutput:
        while not self._pending:
            if self.is_done:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return merge(self._pending.pop(next(iter(self._pending))))

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be pushed."""
        return not self._open

    def push(self, output: StepOutput) -> None:
        """Hand one output to the reader. On the event loop's thread only, as everything here."""
        if self.is_done:
            return
        self._pending.setdefault(output.index, []).append(output)
        if output.finish_reason in FAILED:
            self._open.clear()
        elif output.finish_reason is not None:
            self._open.discard(output.index)
        self._wake_reader()

    def close(self) -> None:
        """Stop listening; a reader that waits ends at once."""
        if not self.is_done:
            self._open.clear()
            self._pending.clear()
            self._abort(self.request_id)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Session:
    """Opens the service and runs its engine's step loop on a thread; `submit` gives a Stream of outputs.

    `open_service` is called on that thread, so loading does not block the server. `on_change` is called on the event
    loop whenever `state` changes: "loading" -> "ready" | "failed", later "failed" | "closed". When a step raises, every
    request ends with an error, the state is "failed" for good and `error` says why. `stats` is the engine's latest;
    `meter` measures what passes through.
    """

    def __init__(self, open_service: Callable[[], Service], on_change: Callable[[State], None] | None = None) -> None:
        self.state: State = "loading"
        self.error: BaseException | None = None
        self.service: Service | None = None
        self.stats: dict[str, Any] = {}
        self.meter = Meter()
        self._open_service = open_service
        self._on_change = on_change
        self._commands: queue.SimpleQueue[Callable[[StepEngine], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin opening the service. Call on the running event loop that will read the streams."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, request: Request) -> Stream:
        """Queue a request. A session that is not ready gives a stream whose only output is the error."""
        stream = Stream(request.request_id, self._leave, request.params.n)
        if self.state != "ready":
            stream.push(_failure(request.request_id, f"the engine is {self.state}"))
            return stream
        self._streams[request.request_id] = stream
        self._commands.put(lambda engine: self._add(engine, request))
        return stream

    def end_conversation(self, session_id: str) -> None:
        """Have the engine forget what only this conversation holds, once its requests have ended."""

        def forget(engine: StepEngine) -> None:
            tokens = engine.end_session(session_id)
            logger.info("conversation %r is over: %d cached tokens forgotten", session_id, tokens)

        self._commands.put(forget)

    async def close(self, timeout: float = 10.0) -> None:
        """End what still runs, stop the thread and wait for it at most `timeout` seconds. Idempotent."""
        loading = self.is_loading
        if self.state != "failed":
            self._set_state("closed")
        self.end_all()
        self._commands.put(None)
        # A load cannot be interrupted; the thread is a daemon and ends with the process.
        await asyncio.to_thread(self._thread.join, 0.0 if loading else timeout)

    @property
    def is_loading(self) -> bool:
        """Whether the thread still opens the service, be it for a session that was closed meanwhile."""
        return self._thread.is_alive() and self.service is None

    def _run(self) -> None:
        try:
            self.service = self._open_service()
            engine = self.service.engine
            self.stats = engine.stats()
            if self.service.ranks is not None:
                self.service.ranks.when_lost(lambda error: self._commands.put(partial(_raise, error)))
            self._post(self._set_state, "ready")
            while self._apply_commands(engine):
                outputs = engine.step() if engine.has_work else []
                # Before the outputs leave: who has seen the end of a request sees its resources free.
                self.stats = engine.stats()
                if outputs:
                    self._post(self._dispatch, outputs)
        except BaseException as error:
            if not isinstance(error, UserError | LostRankError):
                logger.exception("the engine failed")
            self.error = error
            self._post(self._fail, str(error) or type(error).__name__)
        finally:
            if self.service is not None and self.service.ranks is not None:
                self.service.ranks.close()

    def _apply_commands(self, engine: StepEngine) -> bool:
        """Run what was asked since the last step, waiting while there is no work. False: stop."""
        wait = not engine.has_work
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(engine)
            wait = False

    def _add(self, engine: StepEngine, request: Request) -> None:
        try:
            engine.add(request)
        except UserError as error:
            self._post(self._reject, request.request_id, error)

    def _leave(self, request_id: str) -> None:
        """The reader has gone before the end."""
        self.meter.finished["abort"] += 1
        self._abort(request_id)

    def _abort(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None:
            self._commands.put(lambda engine: engine.abort(request_id))

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            logger.debug("the event loop is gone; nobody reads the outputs")

    def _dispatch(self, outputs: Sequence[StepOutput]) -> None:
        now = time.monotonic()
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue
            self.meter.note(output, stream.watch, now)
            stream.push(output)
            if output.finish_reason in FAILED:
                self._abort(output.request_id)
            elif stream.is_done:
                del self._streams[output.request_id]

    def _reject(self, request_id: str, error: UserError) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.rejection = error
            stream.push(_failure(request_id, str(error)))

    def _fail(self, reason: str) -> None:
        self._set_state("failed")
        self.end_all(f"the engine failed: {reason}")

    def end_all(self, reason: str = "the server is shutting down") -> None:
        """End every request with an error that says why. On the event loop's thread only."""
        streams, self._streams = self._streams, {}
        self.meter.finished["error"] += len(streams)
        for request_id, stream in streams.items():
            stream.push(_failure(request_id, reason))

    def _set_state(self, state: State) -> None:
        if self.state in ("closed", "failed"):
            return
        self.state = state
        if self._on_change is not None:
            self._on_change(state)


def merge(outputs: Sequence[StepOutput]) -> StepOutput:
    """Consecutive outputs of one request as one."""
    last = outputs[-1]
    if len(outputs) == 1:
        return last
    return replace(
        last,
        token_ids=tuple(i for output in outputs for i in output.token_ids),
        text="".join(output.text for output in outputs),
        logprobs=tuple(item for output in outputs for item in output.logprobs),
        prompt_logprobs=outputs[0].prompt_logprobs,
        prompt_tokens=max(output.prompt_tokens for output in outputs),
        cached_tokens=max(output.cached_tokens for output in outputs),
    )


def _raise(error: LostRankError, engine: StepEngine) -> None:
    raise error


def _failure(request_id: str, reason: str) -> StepOutput:
    return StepOutput(request_id, finish_reason="error", error=reason)
