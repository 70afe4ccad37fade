"""Whether a thousand clients at once get every token exactly once, and leave nothing behind.

    python benchmarks/soak.py [--streams 1000] [--requests 40] [--tokens 24] [--seed 1]

Starts `sweq-engine serve --deterministic` on a tiny model with random weights, asks a number of different requests one
after another, and then opens all streams together, each with one of the same requests. A tenth of the clients leave
half-way, a tenth read slowly. A token is known by its bytes, which the log-probabilities give. Ends with status 1
unless

- every stream that was read to its end has exactly the tokens, in their order, of the same request served alone;
- every stream that was left had a beginning of them;
- in the end no block, state slot, place in a queue or open request is in use, and nothing was answered with an error.
"""

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

IN_USE = ("running", "waiting", "blocks_used", "state_slots_used", "swap_bytes_used")
ABORTED = 'sweq_finished_total{finish_reason="abort"}'
PATH = "/v1/chat/completions"


@dataclass
class Stream:
    """What one client saw. `tokens` are the bytes of each token."""

    request: int
    kind: str = "whole"
    status: int = 0
    tokens: list[bytes] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    first_token: float = 0.0
    error: str = ""

    def take(self, line: bytes) -> None:
        """One line of the answer's events."""
        if line == b"data: [DONE]":
            self.ends.append("done")
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                self.ends.append(event["error"]["message"])
            for choice in event.get("choices", ()):
                content = (choice.get("logprobs") or {}).get("content") or ()
                self.tokens += [bytes(entry["bytes"]) for entry in content]
                if choice["finish_reason"]:
                    self.ends.append(choice["finish_reason"])


def make_requests(count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Different requests, greedy and sampled in turn; half of the prompts begin alike."""
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        words = " ".join(draw.choice(("read", "the", "file", "and", "fix", "it")) for _ in range(draw.randint(2, 12)))
        text = f"{'You are an agent that works in a repository. ' * (number % 2)}{number}: {words}"
        sampling = {"temperature": 0} if number % 4 < 2 else {"temperature": 1, "seed": number, "top_p": 0.95}
        messages = [{"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": draw.randint(tokens // 2, tokens), "stream": True, "logprobs": True}
        requests.append(body | sampling)
    return requests


async def run_stream(port: int, body: dict[str, Any], stream: Stream) -> Stream:
    """Send `body` and read as the stream's kind says; whatever goes wrong is told in `error`."""
    started = time.perf_counter()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
        data = json.dumps(body).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: soak\r\nconnection: close\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        stream.status = int((await reader.readline()).split()[1])
        async for line in lines(reader):
            stream.take(line)
            if stream.tokens and not stream.first_token:
                stream.first_token = time.perf_counter() - started
            if stream.kind == "left" and len(stream.tokens) >= body["max_tokens"] // 2:
                writer.transport.abort()
                break
            if stream.kind == "slow":
                await asyncio.sleep(0.05)
    except (OSError, ValueError, EOFError) as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        if writer is not None:
            writer.close()
    return stream


async def lines(reader: asyncio.StreamReader) -> Any:
    """The lines of a chunked body; EOFError when the connection ends before it does."""
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    rest = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        rest += await reader.readexactly(size)
        await reader.readexactly(2)
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line


async def run_together(port: int, requests: list[dict[str, Any]], streams: list[Stream]) -> None:
    await asyncio.gather(*(run_stream(port, requests[stream.request], stream) for stream in streams))


def assign(streams: int, requests: int, seed: int) -> list[Stream]:
    draw = random.Random(seed)
    kinds = ["left", "slow", *["whole"] * 8]
    return [Stream(number % requests, draw.choice(kinds)) for number in range(streams)]


def judge(stream: Stream, alone: Stream) -> str:
    """What is wrong with a stream, or nothing."""
    if stream.status != 200 or stream.error:
        return f"status {stream.status} {stream.error}"
    if stream.kind == "left":
        return "" if stream.tokens == alone.tokens[: len(stream.tokens)] else "other tokens before it was left"
    if stream.tokens != alone.tokens:
        return f"{len(stream.tokens)} tokens that are not the {len(alone.tokens)} of the request alone"
    return "" if stream.ends == alone.ends else f"ended as {stream.ends}, alone as {alone.ends}"


def read_metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def in_use(port: int, seconds: float = 30) -> dict[str, float]:
    """What is still in use when nothing changes any more, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        metrics = read_metrics(port)
        held = {name: metrics.get(f"sweq_{name}", 0.0) for name in (*IN_USE, "open_requests")}
        if not any(held.values()) or time.monotonic() > deadline:
            return held
        time.sleep(0.1)


def start_server() -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "engine", "serve", "--model", "synthetic:tiny", "--quant", "f32", "--port", "0"]
    command += ["--deterministic", "--max-context", "512", "--max-running", "64", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline() if process.stdout else ""
    if not line.startswith("Serving"):
        process.kill()
        raise SystemExit(f"soak: the server did not start: {line!r}")
    return process, int(line.rpartition(":")[2].partition("/")[0])


def peak_memory(process: subprocess.Popen[str]) -> float:
    """MiB that the server had in memory at most, where the system tells."""
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def soak(port: int, arguments: argparse.Namespace) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows of the table, and what went wrong."""
    requests = make_requests(arguments.requests, arguments.tokens, arguments.seed)
    alone = [asyncio.run(run_stream(port, body, Stream(number))) for number, body in enumerate(requests)]
    wrong = [f"alone, request {one.request}: {one}" for one in alone if one.status != 200 or "done" not in one.ends]
    streams = assign(arguments.streams, arguments.requests, arguments.seed)
    started = time.perf_counter()
    asyncio.run(run_together(port, requests, streams))
    seconds = time.perf_counter() - started
    for number, stream in enumerate(streams):
        reason = judge(stream, alone[stream.request])
        wrong += [f"stream {number} ({stream.kind}, request {stream.request}): {reason}"] if reason else []
    held, metrics = in_use(port), read_metrics(port)
    wrong += [f"{name} is {value:g} in the end" for name, value in held.items() if value]
    wrong += [f"{name}: {value:g}" for name, value in metrics.items() if 'status="5' in name or '"error"' in name]
    first = sorted(stream.first_token for stream in streams if stream.first_token)
    counts = {kind: sum(stream.kind == kind for stream in streams) for kind in ("whole", "slow", "left")}
    tokens = sum(len(stream.tokens) for stream in streams)
    rows = [
        ("streams at once", f"{len(streams)}, of {len(requests)} requests"),
        ("read whole / slowly / left", " / ".join(str(count) for count in counts.values())),
        ("streams with a wrong, lost or doubled token", str(sum(line.startswith("stream") for line in wrong))),
        ("tokens received", f"{tokens} in {seconds:.1f} s, {tokens / seconds:.0f} per second"),
        ("time to first token, median / last", f"{statistics.median(first):.1f} / {first[-1]:.1f} s"),
        ("completions that the server saw left", f"{metrics.get(ABORTED, 0):g}"),
        ("in use in the end", ", ".join(f"{name} {value:g}" for name, value in held.items())),
    ]
    return rows, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("streams", 1000), ("requests", 40), ("tokens", 24), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    process, port = start_server()
    try:
        rows, wrong = soak(port, arguments)
        rows.append(("memory of the server at most", f"{peak_memory(process):.0f} MiB"))
        process.terminate()
        rows.append(("status of the server when asked to stop", str(process.wait(60))))
    finally:
        process.kill()
    for name, value in rows:
        print(f"{name:<46}{value}")
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong or process.returncode else 0)


if __name__ == "__main__":
    main()
