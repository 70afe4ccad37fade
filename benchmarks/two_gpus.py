"""The run on two GPUs, in one call of at most eight minutes: correctness, speeds beside one GPU's, sums between them.

    python benchmarks/two_gpus.py OUT [--only PART ...] [--seconds 470]

Every part runs in a process of its own with a time limit, the most valuable first, and writes OUT/<part>.json once
it knows something. Speeds need one GPU's beside them; FP8 weights of all 48 layers (75 GiB) leave an 80 GB card no
cache, so on such cards both run fewer layers, and the JSON says how many. BF16 (148 GiB at full depth) is cut likewise.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

SHAPE = "qwen3-coder-next"
PARTS = {
    "sums": 75, "correct": 170, "tp2-fp8": 130, "tp1-fp8": 100, "tp2-bf16": 110, "tp1-bf16": 90, "nccl-fp8": 90,
}  # fmt: skip
"""Seconds that each part may take at most."""
LAYERS = {"correct": 8, "fp8": 24, "bf16": 16}
BATCHES = (1, 8, 32, 128)
PROMPTS = (8192, 32768)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=470)
    parser.add_argument("--part")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        run_part(options.part, options.out)
        return
    end = time.monotonic() + options.seconds
    for part in options.only:
        start_part(part, options.out, min(PARTS[part], end - time.monotonic()))
    report(options.out)


def start_part(part: str, out: Path, seconds: float) -> None:
    """One part in a process group of its own, which is killed whole when its time is over."""
    if seconds < 20:
        note(out, part, {"skipped": "no time is left"})
        return
    start = time.monotonic()
    with (out / f"{part}.log").open("w") as log:
        command = [sys.executable, __file__, str(out), "--part", part]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            status: Any = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"stopped after {seconds:.0f} s"
    note(out, part, {"status": status, "wall_seconds": round(time.monotonic() - start, 1)})
    print(part, json.dumps(read(out, part)), flush=True)


def read(out: Path, part: str) -> dict[str, Any]:
    file = out / f"{part}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def note(out: Path, part: str, news: dict[str, Any]) -> None:
    (out / f"{part}.json").write_text(json.dumps(read(out, part) | news, indent=1))


def run_part(part: str, out: Path) -> None:
    def tell(**news: Any) -> None:
        note(out, part, news)

    tell(device=torch.cuda.get_device_name(), gpus=torch.cuda.device_count(), torch=torch.__version__)
    if part == "sums":
        measure_sums(tell)
    elif part == "correct":
        check(tell)
    else:
        kind, quant = part.split("-")
        if kind == "nccl":
            os.environ["SWEQ_ONE_SHOT"] = "0"
        speeds(quant, 1 if kind == "tp1" else 2, tell)


def shape_of(layers: int) -> str:
    """The real shape's first `layers` layers."""
    return f"synthetic:{SHAPE}/{layers}"


def speeds(quant: str, ranks: int, tell: Callable[..., None]) -> None:
    from engine import LLM
    from engine.measure import throughput

    layers, start = LAYERS[quant], time.monotonic()
    blocks = 128 * (2048 + 96) // 16 + 2200
    llm = LLM(
        shape_of(layers), quant, "cuda", tensor_parallel_size=ranks, max_running=max(BATCHES), num_blocks=blocks,
        max_context=max(PROMPTS) + 1, max_step_tokens=8192, prefix_cache=False, delta_state_dtype="float32",
    )  # fmt: skip
    tell(layers=layers, of_layers=48, quant=quant, tensor_parallel_size=ranks, ready_seconds=time.monotonic() - start)
    for batch in BATCHES:
        tell(**{f"decode_{batch}": throughput.decode(llm, batch, 2048, 48, 2)})
    for length in PROMPTS:
        throughput.prefill(llm, length, 1)
        tell(**{f"prefill_{length}": throughput.prefill(llm, length, 2)})
    llm.close()


def check(tell: Callable[..., None]) -> None:
    """Logits of two GPUs against one's on real-shape layers, beside what bfloat16 itself makes of a changed order."""
    from engine import LLM, SamplingParams

    model, found = shape_of(LAYERS["correct"]), {}
    prompt = [7 * i % 256 for i in range(700)]
    greedy = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    for ranks in (1, 2):
        limits = {"num_blocks": 512, "max_context": 4096, "max_running": 4}
        llm = LLM(model, "bf16", "cuda", tensor_parallel_size=ranks, **limits)
        logits = llm.logits(prompt)
        cold, warm = llm.generate([prompt], greedy)[0], llm.generate([prompt], greedy)[0]
        found[ranks] = logits, cold.token_ids
        same = cold.token_ids == warm.token_ids
        tell(**{f"warm_equals_cold_{ranks}": same, f"cached_{ranks}": warm.cached_tokens})
        if ranks == 1:  # the same prompt in pieces: other tiles, the same arithmetic
            parts = LLM(model, "bf16", "cuda", max_step_tokens=256, **limits)
            tell(one_gpu_in_pieces=distance(parts.logits(prompt), logits))
            del parts
        llm.close()
        del llm
        torch.cuda.empty_cache()
    tell(two_gpus=distance(found[2][0], found[1][0]), same_greedy_text=found[1][1] == found[2][1])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Largest and root mean square difference relative to the spread of the logits, divergence, equal likeliest."""
    spread, difference = theirs.std(), ours - theirs
    log_ours, log_theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return {
        "largest": float(difference.abs().max() / spread),
        "rms": float(difference.square().mean().sqrt() / spread),
        "kld": float((log_theirs.exp() * (log_theirs - log_ours)).sum(-1).mean()),
        "top1": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    }


def measure_sums(tell: Callable[..., None]) -> None:
    """Microseconds of a sum of 4 KiB to 512 KiB over two GPUs: NCCL and one shot, launched and from CUDA graphs."""
    import torch.multiprocessing as multiprocessing

    multiprocessing.spawn(_sums_of_rank, args=(str(_port()),), nprocs=2)
    tell(microseconds=json.loads(Path("/tmp/two_gpus_sums.json").read_text()))


def _port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _sums_of_rank(rank: int, port: str) -> None:
    from engine.parallel.group import Group, TCPStore

    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    group = Group(rank, 2)
    group.open(device, TCPStore("127.0.0.1", int(port), is_master=rank == 0, wait_for_workers=False), 60)
    one_shot, found = group._one_shot, {}
    for size in (4096 << i for i in range(8)):
        ones = torch.full((size // 2,), rank + 1.0, dtype=torch.bfloat16, device=device)
        for name, way in (("nccl", None), ("one_shot", one_shot)):
            if name == "one_shot" and way is None:
                continue
            group._one_shot = way
            x = ones.clone()  # NCCL sums in place, so that every way starts anew
            assert bool((group.all_reduce(ones.clone()) == 3).all()), f"{name} adds up wrongly"
            found[f"{name}_{size}"] = _seconds(partial(group.all_reduce, x)) * 1e6
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for _ in range(20):
                    group.all_reduce(x)
            found[f"{name}_graph_{size}"] = _seconds(graph.replay) / 20 * 1e6
    if rank == 0:
        Path("/tmp/two_gpus_sums.json").write_text(json.dumps({"one_shot_opened": one_shot is not None, **found}))
    torch.cuda.synchronize()
    os._exit(0)


def _seconds(run: Callable[[], Any]) -> float:
    """The median of 5 batches of 20 calls."""
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(20):
            run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 20)
    return statistics.median(times[1:])


def report(out: Path) -> None:
    """Ratios of two GPUs to one, where both are known."""
    ratios = {}
    for quant in ("fp8", "bf16"):
        one = read(out, f"tp1-{quant}")
        for kind in ("tp2", "nccl"):
            two = read(out, f"{kind}-{quant}")
            for key in two:
                if key.startswith(("decode_", "prefill_")) and key in one:
                    ratio = two[key]["tokens_per_second"] / one[key]["tokens_per_second"]
                    share = two[key]["tokens_per_second"] / two[key]["limit_tokens_per_second"]
                    ratios[f"{kind}-{quant} {key}"] = {"ratio": round(ratio, 3), "share_of_limit": round(share, 3)}
    (out / "ratios.json").write_text(json.dumps(ratios, indent=1))
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
