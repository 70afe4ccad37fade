"""Finds launch parameters of the Triton matrix kernels on this GPU and writes the table that they read.

    python benchmarks/autotune.py OUT_DIRECTORY [--workers 14] [--only NAME,...]

At the shapes of Qwen3-Coder-Next. Each way is timed as calls captured in a graph over several sets of weights, more
than the L2 cache holds. Prints a line per case: bytes that must be read, time, bandwidth, arithmetic rate and the best
parameters; writes `<device>.json` (for engine/kernels/triton_matrix/tables/) and `autotune.json` with every time.
Workers compile all ways first, side by side. Exit status 2 without a CUDA device.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor

from engine.kernels.block_words import WORDS
from engine.kernels.triton_matrix import experts, grouped, linear, tables
from engine.kernels.triton_matrix.experts import ExpertStack
from engine.kernels.triton_matrix.mixture import expert_stack
from engine.kernels.triton_matrix.operands import Operands, operands
from engine.quant.formats import Packed, pack
from engine.quant.linear import PackedExperts

HIDDEN, INNER, EXPERTS, TOP = 2048, 512, 512, 10
LINEARS = {
    "fp8": [(12288, 2048), (2048, 4096), (9216, 2048)],
    "bf16": [(151936, 2048), (513, 2048), (64, 2048)],
    "int4": [(12288, 2048), (2048, 4096)],
    "int8": [(151936, 2048)],
    "Q4_K": [(12288, 2048), (2048, 4096)],
    "Q6_K": [(12288, 2048), (2048, 4096), (151936, 2048)],
    "Q8_0": [(12288, 2048), (2048, 4096)],
}
EXPERT_FORMATS = ("fp8", "int4", "Q4_K", "Q6_K", "Q8_0")
CACHE = 200 << 20
"""Bytes of weights that one graph goes over at least: several times the L2 cache."""


def launches(**sizes: list[int]) -> list[tables.Launch]:
    return [dict(zip(sizes, values, strict=True)) for values in itertools.product(*sizes.values())]


SPACES: Mapping[str, list[tables.Launch]] = {
    "row_linear": launches(BN=[4, 8, 16, 32], num_warps=[2, 4, 8], num_stages=[1]),
    "linear": [
        {"BN": n, "num_warps": w, "num_stages": s}
        for n, w in ((16, 2), (16, 4), (32, 2), (32, 4), (64, 4), (64, 8), (128, 4), (128, 8))
        for s in (3, 5)
    ],
    "row_gate_up": launches(BN=[4, 8, 16], num_warps=[2, 4, 8], num_stages=[1]),
    "row_down": launches(BN=[2, 4, 8], CHOICES=[1, 4, 16], num_warps=[1, 2, 4], num_stages=[1]),
    "gate_up": [
        {"BN": n, "num_warps": w, "num_stages": s}
        for n, w in ((32, 2), (32, 4), (64, 4), (64, 8), (128, 4), (128, 8))
        for s in (3, 5)
    ],
    "down": [
        {"BN": n, "num_warps": w, "num_stages": s}
        for n, w in ((32, 4), (64, 4), (128, 4), (128, 8), (256, 8))
        for s in (2, 4)
    ],
    "fp8_gate_up": launches(BM=[16, 32, 64, 128], num_warps=[4, 8], num_stages=[2, 3, 4]),
    "fp8_down": launches(BM=[16, 32, 64, 128], BN=[128, 256], num_warps=[4, 8], num_stages=[2, 3, 4]),
    "many_gate_up": launches(BM=[64, 128], BN=[128, 256], num_warps=[8], num_stages=[2, 3]),
    "many_down": launches(BM=[64, 128], BN=[128, 256], num_warps=[8], num_stages=[2, 3]),
}


@dataclass
class Case:
    """One matrix at one number of tokens, and the kernels to be tuned one after another."""

    name: str
    matrix: str
    tokens: int
    kernels: tuple[str, ...]
    calls: list[Callable[[], Tensor]]  # each over other weights or another routing
    bytes: float  # that one call must read
    operations: float


def random_matrix(rows: int, columns: int, format: str) -> Packed:
    """Of block types any codes, and scales without infinities."""
    if format not in WORDS:
        return pack(torch.randn(rows, columns, device="cuda") * columns**-0.5, format)
    size = columns // WORDS[format].columns * (WORDS[format].bytes - WORDS[format].scales)
    codes = torch.randint(0, 256, (rows, size), dtype=torch.uint8, device="cuda")
    scales = torch.randint(0, 64, (rows, WORDS[format].row_bytes(columns) - size), dtype=torch.uint8, device="cuda")
    return Packed(format, (rows, columns), {"blocks": torch.cat([codes, scales], dim=1)})


def linear_case(format: str, out: int, columns: int, tokens: int, small: bool) -> Case:
    def made() -> Operands:
        rows = 128 if small else out
        known = operands(random_matrix(rows, columns, format))
        if known is None:
            raise ValueError(f"no kernel for {format} {rows}x{columns}")
        return known

    first = made()
    size = first.weight.nbytes + (0 if first.scale is first.weight else first.scale.nbytes)
    matrices = [first] + [made() for _ in range(0 if small else min(64, CACHE // size))]
    x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    kernel = "row_linear" if tokens <= linear.ROW_TOKENS else "linear"
    calls = [lambda matrix=matrix: linear.multiply(x, matrix) for matrix in matrices]
    return Case(
        f"linear {format}", f"{format} {out}x{columns}", tokens, (kernel,), calls, size, 2.0 * tokens * out * columns
    )


def stack_of(format: str, small: bool) -> ExpertStack:
    """Random experts and a shared one."""
    count = 32 if small else EXPERTS

    def many(rows: int, columns: int) -> PackedExperts:
        packed = random_matrix(rows * 8, columns, format)
        tensors = {}
        for name, tensor in packed.tensors.items():
            if name == "scales_zeros":
                one = tensor.view(tensor.shape[0], 8, rows, 2).transpose(0, 1)
            else:
                one = tensor.view(8, -1, *tensor.shape[1:])
            repeats = count // 8, *[1] * (one.ndim - 1)
            wide = one.contiguous().view(torch.uint8).repeat(repeats).view(tensor.dtype)
            tensors[name] = wide
        return PackedExperts(format, (count, rows, columns), tensors, packed.group)

    shared = [random_matrix(2 * INNER, HIDDEN, format), random_matrix(HIDDEN, INNER, format)]
    stack = expert_stack(many(2 * INNER, HIDDEN), many(HIDDEN, INNER), *shared)
    if stack is None:
        raise ValueError(f"no kernel for {format} experts")
    return stack


def mixture_case(format: str, stack: ExpertStack, tokens: int, way: str = "") -> Case:
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
    logit = torch.randn(tokens, 1, device="cuda", dtype=torch.bfloat16)
    routings = []
    for _ in range(2 if tokens > 300 else 8):
        chosen = torch.rand(tokens, stack.count, device="cuda").topk(TOP).indices
        routings.append((torch.full((tokens, TOP), 0.1, device="cuda"), chosen))
    read = sum(chosen.unique().numel() for _, chosen in routings) / len(routings) + 1
    parts = (stack.gate_up, stack.down)
    each = sum(part.weight[0].nbytes + (0 if part.scale is part.weight else part.scale[0].nbytes) for part in parts)
    run = {"many": grouped.moe, "by expert": experts.by_expert, "": experts.moe}[way]
    kernels = ("gate_up", "down")
    if way == "many":
        kernels = ("fp8_gate_up", "fp8_down") if format == "fp8" else ("many_gate_up", "many_down")
    elif not way and tokens <= experts.DIRECT_TOKENS:
        kernels = ("row_gate_up", "row_down")
    calls = [lambda pair=pair: run(x, stack, *pair, logit) for pair in routings]
    operations = 6.0 * tokens * (TOP + 1) * HIDDEN * INNER
    name = f"experts {format} {way}".strip()
    return Case(name, f"{format} {EXPERTS}x{INNER}x{HIDDEN}", tokens, kernels, calls, read * each, operations)


def cases(small: bool, only: set[str]) -> Iterator[Case]:
    def wanted(name: str) -> bool:
        return not only or name in only

    for format, shapes in LINEARS.items():
        if wanted(f"linear {format}"):
            for (out, columns), tokens in itertools.product(shapes, (1, 2, 4, 8, 16, 32, 64)):
                yield linear_case(format, out, columns, tokens, small)
    for format in EXPERT_FORMATS:
        few, many = f"experts {format}", f"experts {format} many"
        if not wanted(few) and not wanted(many):
            continue
        stack = stack_of(format, small)
        for tokens in (1, 2, 4, 8, 16, 32, 128, 256) if wanted(few) else ():
            yield mixture_case(format, stack, tokens)
        for tokens in (8, 16) if wanted(few) else ():
            yield mixture_case(format, stack, tokens, "by expert")
        for tokens in (384, 512, 768, 1056, 2048, 4096, 8192) if wanted(many) else ():
            yield mixture_case(format, stack, 64 if small else tokens, "many")
        del stack
        torch.cuda.empty_cache()


def seconds(case: Case, chosen: Mapping[str, tables.Launch], replays: int = 5) -> float:
    """Median time of one call among those of a graph."""

    def choose(kernel: str, matrix: str, tokens: int) -> tables.Launch:
        return chosen.get(kernel, tables.DEFAULTS[kernel])

    with (
        patch.object(linear, "choose", choose),
        patch.object(experts, "choose", choose),
        patch.object(grouped, "choose", choose),
    ):
        case.calls[0]()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in case.calls:
                call()
    times = []
    for _ in range(replays):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / len(case.calls))
    return median(times)


def tune(case: Case) -> tuple[dict[str, tables.Launch], float, list[dict[str, object]]]:
    """The best parameters of each kernel, the first tuned under the defaults of the second."""
    best: dict[str, tables.Launch] = {}
    log, least = [], float("inf")
    for kernel in case.kernels:
        for launch in SPACES[kernel]:
            try:
                time_taken = seconds(case, best | {kernel: launch})
            except Exception as error:  # too much shared memory for this GPU, say: not a way
                log.append({"kernel": kernel, "launch": launch, "error": repr(error)[:200]})
                continue
            log.append({"kernel": kernel, "launch": launch, "microseconds": round(time_taken * 1e6, 2)})
            if time_taken < least or kernel not in best:
                least, best[kernel] = min(least, time_taken), launch
    return best, seconds(case, best, replays=20), log


def compile_all(worker: int, workers: int, only: set[str]) -> None:
    """Compile this worker's share of all ways, on little data."""
    seen: set[str] = set()
    number = 0
    for case in cases(True, only):
        for kernel in case.kernels:
            for launch in SPACES[kernel]:
                rows = case.tokens if case.tokens <= linear.ROW_TOKENS else linear.rows_of_tile(case.tokens)
                columns = case.matrix.partition("x")[2]
                key = f"{case.name} {columns} {kernel} {launch} {rows if 'linear' in kernel else ''}"
                if key in seen:
                    continue
                seen.add(key)
                number += 1
                if number % workers == worker:
                    try:
                        with patch.object(case, "calls", case.calls[:1]):
                            seconds(case, {kernel: launch}, replays=1)
                    except Exception:  # said by the one that measures
                        continue


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path)
    options.add_argument("--workers", type=int, default=14)
    options.add_argument("--worker", type=int)
    options.add_argument("--only", default="")
    options.add_argument("--budget", type=float, default=400, help="seconds")
    given = options.parse_args()
    if not torch.cuda.is_available():
        print("autotune: no CUDA device", file=sys.stderr)
        return 2
    only = set(filter(None, given.only.split(",")))
    if given.worker is not None:
        compile_all(given.worker, given.workers, only)
        return 0
    start = time.perf_counter()
    arguments = [sys.executable, __file__, str(given.out), "--workers", str(given.workers), "--only", given.only]
    running = [subprocess.Popen([*arguments, "--worker", str(i)]) for i in range(given.workers)]
    for process in running:
        process.wait()
    print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)
    measure(given.out, only, start + given.budget)
    return 0


def measure(out: Path, only: set[str], until: float) -> None:
    """Tune every case, printing as it goes and writing what is found so far."""
    table: dict[str, dict[str, dict[str, tables.Launch]]] = {}
    report = []
    name = torch.cuda.get_device_name().replace(" ", "_")
    for case in cases(False, only):
        if time.perf_counter() > until:
            print(f"left out: {case.name} {case.matrix} T={case.tokens} and what follows")
            break
        best, taken, log = tune(case)
        for kernel, launch in best.items():
            table.setdefault(kernel, {}).setdefault(case.matrix, {})[str(case.tokens)] = launch
        speed = f"{case.bytes / taken / 1e12:.2f} TB/s {case.operations / taken / 1e12:.0f} TFLOP/s"
        ways = " ".join(f"{k}={','.join(str(v) for v in launch.values())}" for k, launch in best.items())
        print(
            f"{case.name} {case.matrix} T={case.tokens}: {case.bytes / 1e6:.1f} MB {taken * 1e6:.1f} us {speed} {ways}"
        )
        sys.stdout.flush()
        figures = {"case": case.name, "matrix": case.matrix, "tokens": case.tokens, "bytes": case.bytes}
        report.append(figures | {"microseconds": taken * 1e6, "best": best, "ways": log})
        (out / f"{name}.json").write_text(json.dumps(table, indent=1))
        (out / "autotune.json").write_text(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
