"""Deterministic stand-ins: a model that answers from a list, and a sandbox that is a folder."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from harness.agent.model import ContextExceeded, Reply, ToolCall, Usage
from harness.errors import SandboxError
from harness.instances import Instance
from harness.sandbox.base import DEFAULT_OUTPUT_LIMIT, ExecResult
from harness.tree import commit_tree


def say(text, *, finish_reason="stop", usage=None, max_tokens=None):
    """An answer in text."""
    return Reply(text, (), finish_reason, usage or Usage(100, 10, 90), 0.5, _message(text), max_tokens or 4096)


def bash_block(command):
    """An answer of the text profile."""
    return say(f"Next:\n```bash\n{command}\n```")


def call(*calls, finish_reason="tool_calls"):
    """An answer of the tools profile: (name, arguments as a dict or as raw text) pairs."""
    made = tuple(
        ToolCall(f"id{number}", name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        for number, (name, arguments) in enumerate(calls)
    )
    wire = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}} for one in made
    ]
    return Reply("", made, finish_reason, Usage(100, 10, 90), 0.5, {**_message(""), "tool_calls": wire}, 4096)


def _message(text):
    return {"role": "assistant", "content": text}


class ScriptedModel:
    """Gives `replies` in order, the last one for ever; an exception among them is raised. Records every request."""

    def __init__(self, *replies, max_context=None):
        self.model_name = "scripted"
        self.max_context = max_context
        self.requests = []
        self._replies = replies

    def complete(self, messages, tools, *, seed, max_tokens=None, timeout=None):
        self.requests.append({"messages": json.loads(json.dumps(messages)), "tools": tools, "seed": seed,
                              "max_tokens": max_tokens, "timeout": timeout})  # fmt: skip
        reply = self._replies[min(len(self.requests), len(self._replies)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply


class FolderSandbox:
    """A folder that plays `/testbed`, and another that plays `/tmp`; it isolates nothing and runs our own commands."""

    def __init__(self, root: Path, files: dict[str, bytes]):
        self.testbed = root / "testbed"
        self.temporary = root / "tmp"
        self.temporary.mkdir(parents=True)
        for name, data in files.items():
            path = self.testbed / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        commit_tree(self.testbed)

    def _inside(self, text):
        return text.replace("/testbed", str(self.testbed)).replace("/tmp/.sweq", f"{self.temporary}/.sweq")

    def exec(self, command, *, timeout, cwd="/testbed", env=None, output_limit=DEFAULT_OUTPUT_LIMIT):
        start = time.monotonic()
        environment = {
            **os.environ,
            "HOME": str(self.temporary),
            **{name: self._inside(value) for name, value in (env or {}).items()},
        }
        identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@a"}
        identity |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@a"}
        process = subprocess.Popen(
            ["bash", "-c", self._inside(command)], cwd=self._inside(cwd), env={**environment, **identity},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        timed_out = False
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        half = output_limit // 2
        dropped = max(len(output) - output_limit, 0)
        if dropped:
            output = output[:half] + output[-half:]
        code = 124 if timed_out else process.returncode
        return ExecResult(code, output.decode("utf-8", "replace"), timed_out, dropped, time.monotonic() - start)

    def read_file(self, path):
        return Path(self._inside(path)).read_bytes()

    def write_file(self, path, data, *, mode=0o644):
        target = Path(self._inside(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)

    def listen(self, port):
        return socket.create_server(("127.0.0.1", 0))

    def close(self):
        pass


class BrokenSandbox(FolderSandbox):
    """Fails from the moment that `broken` is set."""

    broken = False

    def exec(self, command, **options):
        if self.broken or command == "break":
            self.broken = True
            raise SandboxError("the daemon is gone")
        return super().exec(command, **options)


def make_instance(**changes):
    """An instance whose dataset fields an agent never sees are marked, so that a leak shows."""
    values = {
        "instance_id": "sweq__box-1", "repo": "sweq/box", "base_commit": "0" * 40, "version": "1",
        "problem_statement": "area() is wrong, it costs $5 and ${braces}", "patch": "GOLD-SECRET",
        "test_patch": "TEST-SECRET", "fail_to_pass": ("F2P-SECRET",), "pass_to_pass": ("P2P-SECRET",),
        "eval_script": "EVAL-SECRET", "log_parser": "parse_log_pytest", "eval_type": "pass_and_fail",
    }  # fmt: skip
    return Instance(**{**values, **changes})


OVERFLOW = ContextExceeded("maximum context length is 100 tokens")
