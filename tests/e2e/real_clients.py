"""Aider, Qwen Code, Claude Code and litellm at our server: `real_clients.py [CACHE] [--only NAME ...]`.

Installs the pinned clients into CACHE (default: under the system's temporary directory) where they are missing, through
pip and npm, has each do its work against the real HTTP stack, checks what came of it, and prints a line each.
Exit status 1 when one failed. litellm talks to a real engine with random weights (`tiny_server`), the others to one
that writes given answers (`forced_server`).
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from forced_server import TEMPLATES, ForcedEngine, forced_server, running_server

from engine.config import EngineConfig
from engine.serve.opening import open_service
from engine.serve.service import Service
from engine.text.chat import ChatTemplate

DEFAULT_CACHE = Path(tempfile.gettempdir()) / "sweq-clients"
AIDER, QWEN, NODE = "aider-chat==0.86.2", "@qwen-code/qwen-code@0.15.10", "node@22.23.3"
CLAUDE = "@anthropic-ai/claude-code@2.1.330"
LITELLM = ("litellm==1.106.2", "mcp==2.3.0")
"""litellm 1.106 imports mcp as soon as a request has tools, without requiring it."""

INSTALL_SECONDS, RUN_SECONDS = 900, 120
CODE = "if 1 < 2:\n\tprint('</div>', \"é\")\n\n"
BLOCK, TURNS = 64, 5


class ClientError(Exception):
    """What a client did wrong, or what was done wrong to it."""


@dataclass(frozen=True)
class Client:
    """`work` runs the client installed in a folder, in an empty working directory; it returns what came of it."""

    name: str
    packages: Sequence[str]
    work: Callable[[Path, Path], str]

    def folder(self, cache: Path) -> Path:
        """Where the client is, or will be: another folder for other versions."""
        return cache / "-".join(package.rpartition("/")[2].replace("=", "") for package in self.packages)

    def is_installed(self, cache: Path) -> bool:
        return (self.folder(cache) / "installed").exists()

    def install(self, cache: Path) -> None:
        """Install what is missing."""
        if self.is_installed(cache):
            return
        folder = self.folder(cache)
        folder.mkdir(parents=True, exist_ok=True)
        if self.packages[-1].startswith("node@"):
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *self.packages]
        else:
            venv.create(folder, with_pip=True)
            command = [str(folder / "bin" / "pip"), "install", "--quiet", *self.packages]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if finished.returncode:
            raise ClientError(f"{command[0]} ended with {finished.returncode}: {finished.stderr[-1500:]}")
        (folder / "installed").touch()

    def run(self, cache: Path) -> str:
        """Do the client's work; ClientError when it went wrong."""
        with tempfile.TemporaryDirectory() as place:
            return self.work(self.folder(cache), Path(place).resolve())


def work_with_aider(folder: Path, place: Path) -> str:
    """One edit in Aider's whole-file format, without tools."""
    with forced_server(lambda prompt: f"hello.py\n```\n{CODE}```\n") as server:
        options = ["--yes-always", "--no-git", "--no-check-update", "--analytics-disable", "--no-show-release-notes"]
        models = ["--model", "openai/script", "--no-show-model-warnings"]
        command = [str(folder / "bin" / "aider"), *models, *options, "--message", "Write hello.py", "hello.py"]
        _run(command, place, OPENAI_API_BASE=f"{server.url}/v1", LITELLM_LOCAL_MODEL_COST_MAP="True")
    _check(place / "hello.py", CODE)
    return "wrote hello.py by an edit"


def work_with_qwen(folder: Path, place: Path) -> str:
    """One `write_file` call over chat completions."""
    binaries = folder / "node_modules" / ".bin"
    command = [str(binaries / "node"), str((binaries / "qwen").resolve()), "--auth-type", "openai", "--yolo"]
    search = f"{binaries}{os.pathsep}{os.environ['PATH']}"

    def ask(url: str) -> str:
        variables = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_MODEL": "script", "PATH": search}
        return _run([*command, "-p", "Write hello.py"], place, **variables)

    return _write_by_call("write_file", place, ask)


def work_with_claude(folder: Path, place: Path) -> str:
    """One `Write` call over Anthropic's API."""
    binaries = folder / "node_modules" / ".bin"
    command = [str(binaries / "claude"), "--allowedTools", "Write", "-p", "Write hello.py"]
    search = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}

    def ask(url: str) -> str:
        variables = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "x", "ANTHROPIC_MODEL": "script"}
        return _run(command, place, PATH=search, **variables, **quiet)

    return _write_by_call("Write", place, ask)


def _write_by_call(tool: str, place: Path, ask: Callable[[str], str]) -> str:
    """One call of `tool`, its result, and the closing answer. `ask` runs the client with a server's URL."""
    path = place / "hello.py"

    def answer(prompt: str) -> str:
        if f"<name>{tool}</name>" not in prompt or "<tool_response>" in prompt:
            return "Done."
        values = {"file_path": path, "content": CODE}
        parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
        # Neither the blank lines nor the missing line end are what a template would write.
        return f"I write it.\n\n\n<tool_call>\n<function={tool}>\n{parameters}</function></tool_call>"

    with forced_server(answer) as server:
        output = ask(server.url)
        engine = server.session.service and server.session.service.engine
        assert isinstance(engine, ForcedEngine)
        first, second = (engine.whole_turn(at) for at in range(2))
    _check(path, CODE)
    if "Done." not in output:
        raise ClientError(f"the closing answer is missing in {output!r}")
    if second[: len(first)] != first:
        raise ClientError("the call that came back was not replayed as it was generated")
    return f"wrote hello.py by a tool call; the next prompt replays all {len(first)} tokens of the first turn"


def work_with_litellm(folder: Path, place: Path) -> str:
    """An agent's turns of forced calls, plain and streamed; each prompt finds all before it in the cache."""
    script = str(Path(__file__).with_name("litellm_turns.py"))
    seen = []
    with tiny_server() as url:
        for mode in ("plain", "stream"):
            command = [str(folder / "bin" / "python"), script, f"{url}/v1", "synthetic:tiny", str(TURNS), mode]
            output = _run(command, place, LITELLM_LOCAL_MODEL_COST_MAP="True")
            records = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            _check_turns(records)
            seen.append([record["calls"] for record in records])
            cached = sum(record["cached_tokens"] for record in records)
            prompts = sum(record["prompt_tokens"] for record in records)
    if seen[0] != seen[1]:
        raise ClientError("streamed calls are not those of the plain answers")
    return f"{TURNS} turns of calls, plain and streamed alike; {cached} of {prompts} prompt tokens cached when streamed"


def _check_turns(records: Sequence[dict[str, object]]) -> None:
    if len(records) != TURNS or any(len(record["calls"]) != 1 for record in records):  # type: ignore[arg-type]
        raise ClientError(f"expected {TURNS} turns of one call, got {records}")
    for before, after in pairwise(records):
        # The last generated token was never computed, and the tree holds whole blocks.
        known = before["prompt_tokens"] + before["completion_tokens"] - 1  # type: ignore[operator]
        if after["cached_tokens"] != known - known % BLOCK:
            raise ClientError(f"{after['cached_tokens']} tokens came from the cache, not {known - known % BLOCK}")


@contextlib.contextmanager
def tiny_server() -> Iterator[str]:
    """URL of a server over the real engine: random weights write what no tokenizer would."""

    def opened() -> Service:
        service = open_service("synthetic:tiny", "f32", EngineConfig(device="cpu", num_blocks=400, block_size=BLOCK))
        template = ChatTemplate((TEMPLATES / "qwen3_coder.jinja").read_text(), {})
        return replace(service, template=template)

    with running_server(opened) as server:
        server.wait_until(lambda: server.session.state == "ready", 120)
        yield server.url


def _run(command: Sequence[str], place: Path, **variables: str) -> str:
    home = place.with_name(f"{place.name}-home")
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "OPENAI_API_KEY": "x", **variables}
    try:
        finished = subprocess.run(
            command,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClientError(f"no end after {RUN_SECONDS} s; its output: {error.stdout!r} {error.stderr!r}") from error
    finally:
        shutil.rmtree(home)
    if finished.returncode:
        raise ClientError(f"exit status {finished.returncode}: {finished.stdout[-1000:]} {finished.stderr[-1000:]}")
    return finished.stdout


def _check(path: Path, text: str) -> None:
    found = path.read_text() if path.exists() else None
    if found != text:
        raise ClientError(f"{path.name} holds {found!r}, not {text!r}")


CLIENTS = (
    Client("aider", (AIDER,), work_with_aider),
    Client("qwen", (QWEN, NODE), work_with_qwen),
    Client("claude", (CLAUDE, NODE), work_with_claude),
    Client("litellm", LITELLM, work_with_litellm),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("cache", nargs="?", type=Path, default=DEFAULT_CACHE, help=f"default: {DEFAULT_CACHE}")
    parser.add_argument("--only", nargs="+", choices=[client.name for client in CLIENTS], help="default: all")
    options = parser.parse_args()
    cache, failed = options.cache.resolve(), 0
    for client in CLIENTS:
        if options.only and client.name not in options.only:
            continue
        versions = ", ".join(client.packages)
        try:
            client.install(cache)
            print(f"ok      {versions}: {client.run(cache)}", flush=True)
        except Exception as error:
            failed = 1
            print(f"FAILED  {versions}: {error}", flush=True)
            if not isinstance(error, ClientError):
                traceback.print_exc()
    return failed


if __name__ == "__main__":
    sys.exit(main())
