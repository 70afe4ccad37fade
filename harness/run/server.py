"""The server of one level during a run: started once, started again after a crash."""

import asyncio
from collections.abc import Callable
from typing import Any

from harness.agent.model import EndpointModel
from harness.config import LevelConfig, RunConfig, read_api_key
from harness.endpoint import Endpoint, open_endpoint
from harness.errors import EndpointError, UserError
from harness.run.paths import LevelPaths

_OUR_ENGINE = "sweq-engine"
"""What `/version` says of a server that knows `POST /v1/sessions/<id>/end`."""


class ServerLostError(EndpointError):
    """The level's server ended and could not be started again: the run stops instead of failing task after task."""


class LevelServer:
    """Hands out a model that answers. `sleep` waits between the model's retries and may be cut short."""

    def __init__(
        self, level: LevelConfig, config: RunConfig, paths: LevelPaths, sleep: Callable[[float], None]
    ) -> None:
        self._level, self._config, self._paths, self._sleep = level, config, paths, sleep
        self._lock = asyncio.Lock()
        self._endpoint: Endpoint | None = None
        self._model: EndpointModel | None = None

    async def start(self) -> dict[str, Any]:
        """Start the server and return its identity. Raises as `open_endpoint`, and when the profile does not fit."""
        identity = (await self._open())[0].identity
        profile = self._config.agent.profile
        if profile in ("tools", "mini", "editor") and identity.get("supports_tools") is False:
            raise UserError(
                f"agent.profile: {profile} needs a model whose chat template has tools, and level {self._level.name} "
                "has none; set agent.profile to text"
            )
        return identity

    async def ready(self) -> EndpointModel:
        """The model, after a restart if the server has ended. Raises `ServerLostError` when it does not come back."""
        async with self._lock:
            if self._endpoint is not None and self._model is not None and self._endpoint.is_alive:
                return self._model
            self.close()
            try:
                return (await self._open())[1]
            except (EndpointError, UserError) as error:
                raise ServerLostError(f"level {self._level.name}: {error}") from error

    async def _open(self) -> tuple[Endpoint, EndpointModel]:
        config = self._config
        endpoint = await open_endpoint(self._level, config, self._paths.log)
        model = EndpointModel(
            endpoint.base_url,
            read_api_key(config.endpoint),
            endpoint.model_name,
            config.sampling,
            config.endpoint.request_timeout,
            _find_context(config, endpoint),
            sleep=self._sleep,
            ends_sessions=endpoint.identity.get("engine") == _OUR_ENGINE,
        )
        self._endpoint, self._model = endpoint, model
        return endpoint, model

    def close(self) -> None:
        """Stop the server."""
        if self._endpoint is not None:
            self._endpoint.close()


def _find_context(config: RunConfig, endpoint: Endpoint) -> int | None:
    """Tokens: the smallest of what was configured and what the server says."""
    said = endpoint.identity.get("max_context")
    limits = [config.agent.context_limit, config.endpoint.max_context, said if isinstance(said, int) else None]
    return min((limit for limit in limits if limit is not None), default=None)
