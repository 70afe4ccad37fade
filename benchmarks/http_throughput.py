"""What the HTTP layer costs: tokens per second over many streams, and what it adds to the time to the first token.

    python benchmarks/http_throughput.py [--connections 64] [--tokens 2000] [--api chat] [--rate N] [--profile FILE]

An engine that computes nothing gives every stream a token a step, with the text and detokenisation that the real one
does. The server runs in a process of its own; the client here reads raw sockets and does little more than count bytes,
so the server is what is measured. Without --rate the engine steps as fast as it can: tokens that are ready together
then leave in one event, and the figure is a ceiling. With --rate it makes so many tokens a second altogether, and the
events and CPU seconds per token show what one token costs that leaves alone. CPU seconds are the server's, user and
system; unlike the wall clock they hardly depend on what else the machine does.

Fairness is Jain's index of the streams' speeds, 1 when all are equal (Jain, Chiu, Hawe 1984), beside the time of the
first stream to end over that of the last. "ttft added" is the median time from a request's first byte to the first
byte of its first token's event at an idle server, less what the engine takes alone.
"""

import argparse
import asyncio
import cProfile
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.request import Request, SamplingParams, StepOutput
from engine.core.text_stream import TextStream
from engine.serve.app import DrainingServer, bind, build_app
from engine.serve.service import Service
from engine.serve.session import Session
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Tokenizer

WORDS = ["def", " solve", "(", "self", ",", " n", "):\n", "   ", " return", " n", " +", " 1", "\n", "#", " naïve", " →"]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
MODEL = "http-throughput"
LATEST_SECONDS = 0.1


@dataclass
class _Stream:
    request: Request
    text: TextStream
    done: int = 0


class InstantEngine:
    """Gives every request its next token in each step, `max_tokens` of them, computing nothing.

    `rate` bounds the tokens per second over all requests; None for no bound.
    """

    def __init__(self, tokenizer: Tokenizer, rate: float | None) -> None:
        self._tokenizer, self._rate = tokenizer, rate
        self._ids = [tokenizer.token_id(word) or 0 for word in WORDS]
        self._streams: dict[str, _Stream] = {}
        self._due = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._streams)

    def prepare(self, params: SamplingParams) -> None:
        params.check()

    def add(self, request: Request) -> None:
        text = TextStream(self._tokenizer.detokenizer(), request.params.stop)
        self._streams[request.request_id] = _Stream(request, text)

    def abort(self, request_id: str) -> None:
        self._streams.pop(request_id, None)

    def end_session(self, session_id: str) -> int:
        return 0

    def step(self) -> list[StepOutput]:
        if self._rate is not None:
            now = time.monotonic()
            # A step that came late is made up for, but not the time without requests.
            self._due = max(self._due + len(self._streams) / self._rate, now - LATEST_SECONDS)
            time.sleep(max(0.0, self._due - now))
        return [self._advance(stream) for stream in list(self._streams.values())]

    def stats(self) -> dict[str, Any]:
        return {"running": len(self._streams), "waiting": 0}

    def _advance(self, stream: _Stream) -> StepOutput:
        token = self._ids[stream.done % len(self._ids)]
        stream.done += 1
        ended = stream.done == stream.request.params.max_tokens
        if ended:
            del self._streams[stream.request.request_id]
        return StepOutput(
            request_id=stream.request.request_id,
            token_ids=(token,),
            text=stream.text.push([token]) + (stream.text.finish() if ended else ""),
            finish_reason="length" if ended else None,
            prompt_tokens=len(stream.request.prompt_ids),
        )


def tokenizer() -> Tokenizer:
    """All bytes, and WORDS as tokens of their own."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [*map(chr, plain), *[chr(256 + n) for n in range(256 - len(plain))]]
    words = list(dict.fromkeys(word for word in WORDS if word not in symbols))
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*symbols, *words],
        "token_type": [1] * len(symbols) + [4] * len(words),
        "merges": [],
    }
    return Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


def serve(rate: float | None, profile: str | None) -> int:
    """The measured process: prints its port, then its CPU seconds for each line on stdin, until stdin closes."""
    words = tokenizer()
    service = Service(
        engine=InstantEngine(words, rate),
        tokenizer=words,
        template=ChatTemplate(TEMPLATE, {}),
        name=MODEL,
        model=MODEL,
        max_context=1 << 20,
        identity={"engine": "sweq-engine", "weights_bytes": 0, "quant": "none"},
    )
    session = Session(lambda: service)
    server = DrainingServer(build_app(session), session, drain_seconds=0)
    listener = bind("127.0.0.1", 0)
    threading.Thread(target=answer_parent, args=(server, listener.getsockname()[1]), daemon=True).start()
    profiler = cProfile.Profile()
    if profile is None:
        server.run(sockets=[listener])
    else:
        profiler.runcall(server.run, sockets=[listener])
        profiler.dump_stats(profile)
    return 0


def answer_parent(server: DrainingServer, port: int) -> None:
    print(port, flush=True)
    for _ in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, flush=True)
    server.should_exit = True


@dataclass
class Measured:
    """The server's process."""

    process: subprocess.Popen[str]
    port: int = 0

    @classmethod
    def start(cls, rate: float | None, profile: str | None) -> "Measured":
        command = [sys.executable, "-P", __file__, "--worker"]
        command += ["--rate", str(rate)] if rate else []
        command += ["--profile", profile] if profile else []
        pipe = subprocess.PIPE
        measured = cls(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        measured.port = int(measured._line())
        return measured

    def cpu_seconds(self) -> float:
        if self.process.stdin is not None:
            print(file=self.process.stdin, flush=True)
        return float(self._line())

    def stop(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=60)

    def _line(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError("the server ended early; its message is above")
        return line


MESSAGES = [{"role": "user", "content": "Write a function that solves it."}]
APIS: dict[str, tuple[str, dict[str, Any], str, bytes]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}, "max_tokens", b'"content": "d'),
    "completions": ("/v1/completions", {"prompt": "Write"}, "max_tokens", b'"text": "d'),
    "messages": ("/v1/messages", {"messages": MESSAGES}, "max_tokens", b"event: content_block_delta"),
    "responses": ("/v1/responses", {"input": MESSAGES}, "max_output_tokens", b"event: response.output_text.delta"),
}
"""API -> path, body, the name of the limit, and what stands in the event of the first token."""


def request_bytes(api: str, tokens: int) -> bytes:
    path, fields, limit, _ = APIS[api]
    body = json.dumps({"model": MODEL, "stream": True, limit: tokens, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Reader(asyncio.Protocol):
    """Sends one request and counts what comes until the server closes the connection."""

    def __init__(self, request: bytes, first_token: bytes) -> None:
        self._request, self._first_token, self._head = request, first_token, b""
        self.events = 0
        self.bytes = 0
        self.started = self.first = self.ended = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.started = time.perf_counter()
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        self.events += data.count(b"data: ")
        if not self.first:
            self._head += data
            if self._first_token in self._head:
                self.first = time.perf_counter()

    def connection_lost(self, _: Exception | None) -> None:
        self.ended = time.perf_counter()
        if not self.first:
            self.closed.set_exception(RuntimeError(f"no token came: {self._head[:400]!r}"))
            return
        self.closed.set_result(self)


async def read_streams(port: int, api: str, connections: int, tokens: int) -> list[Reader]:
    loop = asyncio.get_running_loop()
    request, first = request_bytes(api, tokens), APIS[api][3]
    made = [await loop.create_connection(lambda: Reader(request, first), "127.0.0.1", port) for _ in range(connections)]
    return [await reader.closed for _, reader in made]


def engine_alone(prompt: str = "Write a function that solves it.") -> float:
    """Seconds from `add` to the first output without any server."""
    words = tokenizer()
    engine = InstantEngine(words, None)
    start = time.perf_counter()
    engine.add(Request("alone", tuple(words.encode(prompt)), SamplingParams(max_tokens=1)))
    engine.step()
    return time.perf_counter() - start


def measure(api: str, connections: int, tokens: int, rate: float | None, profile: str | None) -> dict[str, float]:
    """Run the streams against a fresh server."""
    server = Measured.start(rate, profile)
    try:
        for _ in range(5):
            asyncio.run(read_streams(server.port, api, 1, 8))
        alone = statistics.median(engine_alone() for _ in range(20))
        idle = [asyncio.run(read_streams(server.port, api, 1, 1))[0] for _ in range(20)]
        before = server.cpu_seconds()
        readers = asyncio.run(read_streams(server.port, api, connections, tokens))
        cpu = server.cpu_seconds() - before
    finally:
        server.stop()
    times = [reader.first - reader.started for reader in idle]
    return figures(readers, tokens, cpu) | {"ttft_added_ms": 1e3 * (statistics.median(times) - alone)}


def figures(readers: Sequence[Reader], tokens: int, cpu: float) -> dict[str, float]:
    total = len(readers) * tokens
    seconds = max(reader.ended for reader in readers) - min(reader.started for reader in readers)
    spans = [reader.ended - reader.started for reader in readers]
    speeds = [tokens / span for span in spans]
    return {
        "tokens_per_second": total / seconds,
        "tokens_per_event": total / sum(reader.events for reader in readers),
        "bytes_per_token": sum(reader.bytes for reader in readers) / total,
        "cpu_seconds": cpu,
        "cpu_us_per_token": 1e6 * cpu / total,
        "cpu_us_per_event": 1e6 * cpu / sum(reader.events for reader in readers),
        "cores": cpu / seconds,
        "fairness": sum(speeds) ** 2 / (len(speeds) * sum(speed**2 for speed in speeds)),
        "first_over_last": min(spans) / max(spans),
        "ttft_p50_ms": 1e3 * statistics.median(reader.first - reader.started for reader in readers),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of each stream")
    parser.add_argument("--api", nargs="+", choices=sorted(APIS), default=["chat"])
    parser.add_argument("--rate", type=float, help="tokens per second of the engine; default: no bound")
    parser.add_argument("--profile", help="write cProfile's figures of the server's event loop to this file")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.worker:
        return serve(options.rate, options.profile)
    load = os.getloadavg()[0]
    for api in options.api:
        found = measure(api, options.connections, options.tokens, options.rate, options.profile)
        if options.json:
            print(json.dumps({"api": api, "load_before": load, **found}))
            continue
        print(f"{api}: {options.connections} streams of {options.tokens} tokens; load average before: {load:.1f}")
        for name, value in found.items():
            print(f"  {name:20} {value:12,.4g}" if value < 1000 else f"  {name:20} {value:12,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
