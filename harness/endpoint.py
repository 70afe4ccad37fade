"""The model behind the agent: a server started per level, or one that already runs."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from harness.config import LevelConfig, RunConfig, read_api_key
from harness.errors import EndpointError, UserError

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.1
_PROBE_TIMEOUT = 10.0
_QUOTED_LINES = 4
_COMMAND_MARK = "== starting: "


@dataclass
class Endpoint:
    """A server that answers at `base_url` (ending in `/v1`) to `model_name`.

    `identity` is what the server says of itself (`/version`), `log` where a started server writes.
    """

    base_url: str
    model_name: str
    identity: dict[str, Any]
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_alive(self) -> bool:
        """False once a started server has ended; a server that runs elsewhere is taken to be there."""
        return self.process is None or self.process.poll() is None

    def close(self) -> None:
        """Stop a started server: first by SIGTERM, after a grace period by SIGKILL. May be called twice."""
        if self.process is not None:
            _stop(self.process)


async def open_endpoint(level: LevelConfig, config: RunConfig, log_path: Path) -> Endpoint:
    """The server of `level`, ready to answer.

    Raises `EndpointError` when it does not become ready (a started server's last log lines are quoted), `UserError`
    when it refuses its arguments or the configuration does not fit it.
    """
    if config.endpoint.kind == "url":
        return await _attach(level, config)
    command = _engine_command(config, "serve", level)
    host = config.endpoint.host
    port = _free_port(host)
    command += ["--host", host, "--port", str(port), "--max-running", str(config.agent_workers)]
    if config.endpoint.max_context is not None:
        command += ["--max-context", str(config.endpoint.max_context)]
    process = _start([*command, *config.endpoint.engine_args], log_path, api_key=read_api_key(config.endpoint))
    try:
        return await _wait_until_ready(process, f"http://{host}:{port}", config, log_path)
    except BaseException:
        _stop(process)
        raise


async def is_answering(endpoint: Endpoint) -> bool:
    """Whether the server answers now: at `/health` where it was started here, else at `/v1/models`, with any status."""
    started = endpoint.process is not None
    async with httpx.AsyncClient(timeout=_PROBE_TIMEOUT, trust_env=False) as client:
        if started:
            client.base_url = endpoint.base_url.removesuffix("/v1")
            return await _is_healthy(client)
        try:
            return (await client.get(f"{endpoint.base_url}/models")).status_code < httpx.codes.INTERNAL_SERVER_ERROR
        except httpx.TransportError:
            return False


async def measure_quality(
    level: LevelConfig, config: RunConfig, log_path: Path, text: Path, reference: LevelConfig | None = None
) -> dict[str, float]:
    """`perplexity` of `text` at `level`, by the engine; against `reference` also `kld_mean`, `kld_p99` (nats a token)
    and `top1` (share of equal likeliest tokens). Both levels are in memory then. Raises as `open_endpoint` does."""
    command = [*_engine_command(config, "perplexity", level), "--text", str(text)]
    if reference is not None:
        command += ["--reference", str(reference.model or config.model)]
        command += ["--reference-quant", reference.quant or "as-stored"]
    process = _start(command, log_path, stdout=subprocess.PIPE)
    try:
        output = await _read_to_end(process)
    finally:
        _stop(process)
    if process.returncode != 0:
        raise _failure(f"perplexity of level {level.name}", process.returncode, log_path)
    names = {"perplexity": "ppl"} | ({key: key for key in ("kld_mean", "kld_p99", "top1")} if reference else {})
    try:
        found = json.loads(output)
        return {name: float(found[key]) for name, key in names.items()}
    except (ValueError, KeyError, TypeError) as error:
        expected = ", ".join(names.values())
        raise EndpointError(
            f"perplexity of level {level.name}: no JSON with {expected} in {output[-200:]!r}"
        ) from error


def find_engine(name: str) -> str:
    """Path of the engine's program: beside this interpreter, or on PATH; `UserError` where it is neither."""
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.exists() else shutil.which(name)
    if program is None:
        raise UserError(f"endpoint.engine_command: no program {name}; pip install 'sweq[engine]' brings it")
    return program


def _engine_command(config: RunConfig, verb: str, level: LevelConfig) -> list[str]:
    name, *arguments = config.endpoint.engine_command
    quant = ["--quant", level.quant] if level.quant is not None else []
    return [find_engine(name), *arguments, verb, "--model", str(level.model or config.model), *quant]


def _start(
    command: list[str], log_path: Path, stdout: int | None = None, api_key: str | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` under the guard. The key goes by the environment: command lines are for everybody to read."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        log.write(f"{_COMMAND_MARK}{' '.join(command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "harness.guard", *command],
            stdin=subprocess.PIPE,
            stdout=stdout if stdout is not None else log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **({"SWEQ_API_KEY": api_key} if api_key else {})},
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise UserError(f"endpoint.host: {host} is no address of this machine ({error.strerror})") from error
        return int(probe.getsockname()[1])


async def _wait_until_ready(process: subprocess.Popen[bytes], root: str, config: RunConfig, log_path: Path) -> Endpoint:
    deadline = asyncio.get_running_loop().time() + config.endpoint.start_timeout
    async with httpx.AsyncClient(base_url=root, timeout=_PROBE_TIMEOUT, trust_env=False) as client:
        while not await _is_healthy(client):
            status = process.poll()
            if status is not None:
                raise _failure("the model's server", status, log_path)
            if asyncio.get_running_loop().time() > deadline:
                seconds = config.endpoint.start_timeout
                said = quote_log(log_path)
                raise EndpointError(
                    f"the model's server was not ready after endpoint.start_timeout {seconds:g} s: {said}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        api_key = read_api_key(config.endpoint)
        identity = (await client.get("/version", headers=_authorize(api_key))).json()
        names = await _list_models(client, f"{root}/v1", api_key)
    return Endpoint(f"{root}/v1", names[0], identity, log_path, process)


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def _attach(level: LevelConfig, config: RunConfig) -> Endpoint:
    base_url = (level.base_url or config.endpoint.base_url or "").rstrip("/")
    local = httpx.URL(base_url).host in ("localhost", "127.0.0.1", "::1")
    async with httpx.AsyncClient(timeout=_PROBE_TIMEOUT, trust_env=not local) as client:
        names = await _list_models(client, base_url, read_api_key(config.endpoint))
        identity = {"base_url": base_url, "models": names, **await _ask_version(client, base_url)}
    wanted = level.model or config.endpoint.served_model or config.model
    if wanted is None and len(names) > 1:
        raise UserError(f"endpoint.served_model: missing; {base_url} serves {', '.join(names)}")
    if wanted is not None and wanted not in names:
        raise UserError(f"endpoint.served_model: {base_url} has no model {wanted!r}; it serves {', '.join(names)}")
    return Endpoint(base_url, wanted or names[0], identity)


def _authorize(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


async def _list_models(client: httpx.AsyncClient, base_url: str, api_key: str | None) -> list[str]:
    try:
        response = await client.get(f"{base_url}/models", headers=_authorize(api_key))
        response.raise_for_status()
        names = [str(model["id"]) for model in response.json()["data"]]
    except httpx.HTTPStatusError as error:
        raise EndpointError(
            f"{base_url}/models answers HTTP {error.response.status_code}: check base_url and api_key"
        ) from error
    except httpx.TransportError as error:
        raise EndpointError(f"{base_url} cannot be reached ({error}): start the server, or correct base_url") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EndpointError(f"{base_url}/models is no OpenAI model list: base_url usually ends in /v1") from error
    if not names:
        raise EndpointError(f"{base_url}/models lists no model")
    return names


async def _ask_version(client: httpx.AsyncClient, base_url: str) -> dict[str, Any]:
    """What `/version` says, if the server has one: OpenAI's interface does not ask for it."""
    try:
        answer = (await client.get(f"{base_url.removesuffix('/v1')}/version")).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


async def _read_to_end(process: subprocess.Popen[bytes]) -> str:
    """All of stdout, polled: a thread that waits for a hanging child would keep a cancelled run from ending."""
    if process.stdout is None:
        raise ValueError("the process was started without a pipe")
    os.set_blocking(process.stdout.fileno(), False)
    chunks: list[bytes] = []
    while process.poll() is None:
        chunks.append(process.stdout.read() or b"")
        await asyncio.sleep(_POLL_SECONDS)
    chunks.append(process.stdout.read() or b"")
    return b"".join(chunks).decode(errors="replace")


def _failure(what: str, status: int, log_path: Path) -> Exception:
    if status == 2:
        return UserError(f"{what} refused its arguments: {quote_log(log_path, lines=1)}")
    return EndpointError(f"{what} ended with status {status}: {quote_log(log_path)} (log: {log_path})")


def quote_log(log_path: Path, lines: int = _QUOTED_LINES) -> str:
    """In one line, the last lines of what the command said since it was started."""
    said = log_path.read_text(errors="replace").rpartition(_COMMAND_MARK)[2].strip().splitlines()[1:]
    return " | ".join(line.strip() for line in said[-lines:]) or "it said nothing"
