"""The server of one level during a run: started once, watched, started again after a crash."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.agent.model import EndpointModel
from harness.config import LevelConfig, RunConfig, SamplingConfig, read_api_key
from harness.endpoint import Endpoint, is_answering, open_endpoint, quote_log
from harness.errors import EndpointError, UserError
from harness.run.attempts import ServerCrashedError, ServerLostError
from harness.run.paths import LevelPaths

_OUR_ENGINE = "sweq-engine"
"""What `/version` says of a server that knows `POST /v1/sessions/<id>/end`."""

MOST_CRASHES = 3
"""Ends of a level's server in a row, without one task finished in between, after which the run stops."""

_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class ModelAddress:
    """All that a process, on this machine or another, needs to ask a level's model."""

    base_url: str
    api_key: str | None = field(repr=False)
    model_name: str
    sampling: SamplingConfig
    request_timeout: float
    max_context: int | None
    ends_sessions: bool

    def connect(self, sleep: Callable[[float], None]) -> EndpointModel:
        """A client; `sleep` waits between its retries."""
        return EndpointModel(
            self.base_url,
            self.api_key,
            self.model_name,
            self.sampling,
            self.request_timeout,
            self.max_context,
            sleep=sleep,
            ends_sessions=self.ends_sessions,
        )


@dataclass(frozen=True, eq=False)
class Served:
    """A server between its start and its end."""

    address: ModelAddress
    endpoint: Endpoint

    def check_alive(self) -> None:
        """Raises `ServerCrashedError` once a started server has ended."""
        if not self.endpoint.is_alive:
            raise ServerCrashedError("the model's server ended")


class LevelServer:
    """Hands out a server that answers. `note` gets one line where it is started again or waited for."""

    def __init__(self, level: LevelConfig, config: RunConfig, paths: LevelPaths, note: Callable[[str], None]) -> None:
        self._level, self._config, self._paths, self._note = level, config, paths, note
        self._lock = asyncio.Lock()
        self._served: Served | None = None
        self._suspect = False
        self._crashes = 0

    async def start(self) -> dict[str, Any]:
        """Start the server and return its identity. Raises as `open_endpoint`, and when the profile does not fit."""
        identity = (await self._open()).endpoint.identity
        profile = self._config.agent.profile
        if profile in ("tools", "mini", "editor") and identity.get("supports_tools") is False:
            raise UserError(
                f"agent.profile: {profile} needs a model whose chat template has tools, and level {self._level.name} "
                "has none; set agent.profile to text"
            )
        return identity

    async def ready(self) -> Served:
        """The server, after a restart if it has ended or no longer answers.

        Raises `ServerLostError` when it does not come back, or keeps ending before any task is done.
        """
        async with self._lock:
            served = self._served
            if served is not None and served.endpoint.is_alive:
                if not self._suspect or await is_answering(served.endpoint):
                    self._suspect = False
                    return served
                if served.endpoint.process is None:
                    return await self._wait_for(served)
            return await self._restart()

    def note_done(self) -> None:
        """A task was finished: what crashed before was no crash loop."""
        self._crashes = 0

    def blame(self, served: Served, error: EndpointError) -> EndpointError:
        """`error` of a task, or the server's end where that is behind it. Either way its health is asked for next."""
        self._suspect = True
        if served.endpoint.is_alive and served is self._served:
            return error
        return ServerCrashedError(f"the model's server ended: {error}")

    def close(self) -> None:
        """Stop the server."""
        if self._served is not None:
            self._served.endpoint.close()

    async def _restart(self) -> Served:
        self._crashes += 1
        said = quote_log(self._paths.log) if self._paths.log.exists() else "nothing"
        if self._crashes > MOST_CRASHES:
            raise ServerLostError(
                f"level {self._level.name}: its server ended {self._crashes} times in a row before any task was done; "
                f"it said: {said} (log: {self._paths.log})"
            )
        self._note(f"{self._level.name}: the server ended or hangs, starting it again (it said: {said})")
        self.close()
        try:
            return await self._open()
        except (EndpointError, UserError) as error:
            raise ServerLostError(f"level {self._level.name}: {error}") from error

    async def _wait_for(self, served: Served) -> Served:
        """A server of somebody else's is not ours to start: wait for it, as long as a start may take."""
        seconds = self._config.endpoint.start_timeout
        self._note(f"{self._level.name}: {served.address.base_url} does not answer, waiting {seconds:g} s for it")
        deadline = asyncio.get_running_loop().time() + seconds
        while not await is_answering(served.endpoint):
            if asyncio.get_running_loop().time() > deadline:
                raise ServerLostError(
                    f"level {self._level.name}: {served.address.base_url} has not answered for "
                    f"endpoint.start_timeout {seconds:g} s; start it and run the same command again"
                )
            await asyncio.sleep(min(_POLL_SECONDS, seconds / 4))
        self._suspect = False
        return served

    async def _open(self) -> Served:
        config = self._config
        endpoint = await open_endpoint(self._level, config, self._paths.log)
        address = ModelAddress(
            endpoint.base_url,
            read_api_key(config.endpoint),
            endpoint.model_name,
            config.sampling,
            config.endpoint.request_timeout,
            _find_context(config, endpoint),
            ends_sessions=endpoint.identity.get("engine") == _OUR_ENGINE,
        )
        self._served, self._suspect = Served(address, endpoint), False
        return self._served


def _find_context(config: RunConfig, endpoint: Endpoint) -> int | None:
    """Tokens: the smallest of what was configured and what the server says."""
    said = endpoint.identity.get("max_context")
    limits = [config.agent.context_limit, config.endpoint.max_context, said if isinstance(said, int) else None]
    return min((limit for limit in limits if limit is not None), default=None)
