"""Starting, attaching to and surely ending the model's server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.config import LevelConfig, RunConfig
from harness.endpoint import Endpoint, measure_quality, open_endpoint
from harness.errors import EndpointError, UserError

ENGINE = (sys.executable, str(Path(__file__).with_name("scripted_engine.py")))


def make_config(folder: Path, script: dict[str, Any], **endpoint: Any) -> RunConfig:
    model = folder / "model.json"
    model.write_text(json.dumps(script))
    text = folder / "text.txt"
    text.write_text("some text")
    settings = {"engine_command": ENGINE, "start_timeout": 20, **endpoint}
    return RunConfig.model_validate(
        {
            "name": "t",
            "dataset": "starter",
            "model": str(model),
            "levels": [{"name": "a", "quant": "int4"}],
            "endpoint": settings,
            "perplexity_text": text,
        }
    )


def open_here(config: RunConfig, folder: Path) -> Endpoint:
    return asyncio.run(open_endpoint(config.levels[0], config, folder / "server.log"))


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, "the server outlived the harness"
        time.sleep(0.02)


def test_a_started_engine_answers_and_ends(tmp_path: Path) -> None:
    config = make_config(tmp_path, {})
    endpoint = open_here(config, tmp_path)
    assert (endpoint.model_name, endpoint.identity["weights_bytes"]) == ("scripted", 1000)
    assert endpoint.is_alive
    endpoint.close()
    endpoint.close()
    assert not endpoint.is_alive
    wait_until_gone(endpoint.identity["pid"])
    assert "serve --model" in (tmp_path / "server.log").read_text()


def test_perplexity_comes_from_the_engine(tmp_path: Path) -> None:
    config = make_config(tmp_path, {})
    level, log, text = config.levels[0], tmp_path / "server.log", config.perplexity_text
    assert asyncio.run(measure_quality(level, config, log, text)) == {"perplexity": 12.5}
    found = asyncio.run(measure_quality(level, config, log, text, level))
    assert found == {"perplexity": 12.5, "kld_mean": 0.01, "kld_p99": 0.2, "top1": 0.9}
    assert f"--reference {config.model} --reference-quant" in log.read_text()


def test_a_server_that_crashes_is_quoted(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"crash": "out of memory at layer 7"})
    with pytest.raises(EndpointError, match=r"ended with status 3: .*loading \| out of memory at layer 7"):
        open_here(config, tmp_path)


def test_a_server_that_refuses_its_arguments_is_the_users_mistake(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"refuse": "sweq-engine: no file x.gguf"})
    with pytest.raises(UserError, match=r"refused its arguments: sweq-engine: no file x\.gguf"):
        open_here(config, tmp_path)
    with pytest.raises(UserError, match=r"perplexity of level a refused its arguments: sweq-engine: no file"):
        asyncio.run(measure_quality(config.levels[0], config, tmp_path / "server.log", config.perplexity_text))


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"silent": True}, start_timeout=0.5)
    with pytest.raises(EndpointError, match=r"not ready after endpoint\.start_timeout 0\.5 s"):
        open_here(config, tmp_path)


def test_a_missing_program_is_the_users_mistake(tmp_path: Path) -> None:
    config = make_config(tmp_path, {}, engine_command=("no-such-engine",))
    with pytest.raises(UserError, match=r"endpoint\.engine_command: no program no-such-engine"):
        open_here(config, tmp_path)


def test_attaching_to_a_running_server(tmp_path: Path) -> None:
    server = open_here(make_config(tmp_path, {}), tmp_path)
    try:
        config = make_config(tmp_path, {}, kind="url", base_url=server.base_url + "/")
        level = LevelConfig(name="a", model="scripted")
        attached = asyncio.run(open_endpoint(level, config, tmp_path / "other.log"))
        assert (attached.base_url, attached.model_name) == (server.base_url, "scripted")
        assert attached.identity["weights_sha256"] == "ab"
        attached.close()
        assert server.is_alive
        with pytest.raises(UserError, match=r"has no model 'other'; it serves scripted"):
            asyncio.run(open_endpoint(LevelConfig(name="a", model="other"), config, tmp_path / "other.log"))
    finally:
        server.close()
    with pytest.raises(EndpointError, match="cannot be reached"):
        asyncio.run(open_endpoint(level, config, tmp_path / "other.log"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_a_harness_that_is_killed(tmp_path: Path, number: int) -> None:
    config = make_config(tmp_path, {})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = """
import asyncio, sys, time
from pathlib import Path
from harness.config import RunConfig
from harness.endpoint import open_endpoint
folder = Path(sys.argv[1])
config = RunConfig.model_validate_json((folder / "config.json").read_text())
print(asyncio.run(open_endpoint(config.levels[0], config, folder / "log")).identity["pid"], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        pid = int(harness.stdout.readline())
        assert is_running(pid)
        os.kill(harness.pid, number)
        harness.wait()
        wait_until_gone(pid)
