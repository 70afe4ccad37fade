"""Watches one process of the namespace sandbox from outside: its output, its deadline, its end."""

import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from harness.errors import SandboxError
from harness.sandbox.output import CappedOutput

GRACE = 10.0
"""Seconds that a killed process may take to disappear."""


@dataclass(frozen=True)
class Finished:
    """One process inside: its exit code (None when killed at the deadline) and what it wrote."""

    exit_code: int | None
    output: CappedOutput
    seconds: float


def supervise(
    command: list[str],
    ours: socket.socket,
    theirs: socket.socket,
    stdin: IO[bytes],
    spool: IO[bytes] | None,
    timeout: float,
    captured: CappedOutput,
    env: Mapping[str, str],
) -> Finished:
    """Run `command`, which is to say its exit code over `theirs`, until it ends or `timeout` seconds are over."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE if spool is None else spool,
        stderr=subprocess.STDOUT if spool is None else subprocess.PIPE,
        pass_fds=(theirs.fileno(),),
        env=env,
        cwd="/",
        start_new_session=True,
    )
    theirs.close()
    stream = process.stdout or process.stderr
    if stream is None:
        raise SandboxError("a command started without a pipe to its output")
    with stream:
        ended = _drain(stream, captured, start + timeout)
        if not ended:
            # Process 1 of the command's namespace ends when its socket does, and the kernel kills the rest.
            ours.shutdown(socket.SHUT_RDWR)
            _drain(stream, captured, time.monotonic() + GRACE)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise SandboxError(f"a command did not end within {GRACE:g} s of being killed") from None
    seconds = time.monotonic() - start
    return Finished(_exit_code(ours, captured) if ended else None, captured, seconds)


def _drain(stream: IO[bytes], captured: CappedOutput, deadline: float) -> bool:
    """Feed `captured` until the stream ends (True) or the deadline passes (False)."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    return True
                captured.feed(data)
    return False


def _exit_code(line: socket.socket, captured: CappedOutput) -> int:
    try:
        message = line.recv(64)
    except ConnectionResetError:  # it ended before it had read what to run
        message = b""
    if not message:
        raise SandboxError(f"a command could not be started: {last_line(captured.text())}")
    return int(message)


def last_line(text: str) -> str:
    """The last line that says something: where a tool's output names its failure."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
