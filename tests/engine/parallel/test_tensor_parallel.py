"""A model over two and four ranks on CPU is the model on one: logits, cache, limits, and what happens when one dies."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import psutil
import pytest

from engine.core.request import SamplingParams
from engine.errors import LostRankError, UserError
from engine.llm import LLM
from engine.weights import synthetic
from engine.weights.writer import quantize

IDS = [i * 7 % 256 for i in range(150)]
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@contextlib.contextmanager
def opened(model: str, quant: str, ranks: int = 1, **limits: Any) -> Iterator[LLM]:
    llm = LLM(model, quant, "cpu", tensor_parallel_size=ranks, **{"num_blocks": 64, "max_context": 512, **limits})
    try:
        yield llm
    finally:
        llm.close()


@pytest.mark.parametrize(("model", "ranks"), [("tiny/4", 2), ("tiny/4", 4), ("llama-tiny/1", 2)])
def test_logits_and_cache_are_those_of_one_rank(model: str, ranks: int) -> None:
    with opened(f"synthetic:{model}", "f32") as one, opened(f"synthetic:{model}", "f32", ranks) as several:
        expected = one.logits(IDS[:80])
        assert (several.logits(IDS[:80]) - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()) / 5)
        for _ in range(2):
            (ours,), (theirs,) = (llm.generate([IDS], GREEDY) for llm in (several, one))
            assert (ours.token_ids, ours.cached_tokens) == (theirs.token_ids, theirs.cached_tokens)
        assert ours.cached_tokens > 0
        branch = IDS[:130] + [5] * 20
        (ours,), (theirs,) = (llm.generate([branch], GREEDY) for llm in (several, one))
        assert (ours.token_ids, ours.cached_tokens) == (theirs.token_ids, theirs.cached_tokens)
        assert ours.cached_tokens > 0


def test_preempted_sequences_go_to_host_memory_and_back_on_every_rank() -> None:
    prompts, long = [IDS[i:30] for i in range(3)], replace(GREEDY, max_tokens=20)
    texts = []
    for ranks in (1, 2):
        limits = {"num_blocks": 8, "max_context": 128, "prefix_cache": False}
        with opened("synthetic:tiny/4", "f32", ranks, **limits) as llm:
            assert llm.engine._memory.swap is not None
            llm.engine._memory.swap._operations = 10**12  # a model this small would sooner compute again
            texts.append([completion.token_ids for completion in llm.generate(prompts, long)])
            assert llm.engine.stats()["swapped_tokens"] > 0
    assert texts[0] == texts[1]


def test_experts_go_by_number_where_int4_groups_forbid_width() -> None:
    with opened("synthetic:tiny/4", "int4") as one, opened("synthetic:tiny/4", "int4", 2) as two:
        assert two.checkpoint.weights["model.layers.0.mlp.experts.down_proj"].shape == (8, 256, 128)  # type: ignore[union-attr]
        assert (one.logits(IDS[:40]) - two.logits(IDS[:40])).abs().max() < 1e-4


def test_fp8_blocks_are_divided_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(
        synthetic.SHAPES["tiny"], num_layers=4, layer_types=synthetic.SHAPES["tiny"].layer_types[:4], vocab_size=300,
        head_dim=128, rotary_dim=32, linear_key_head_dim=64, linear_value_head_dim=64, moe_intermediate_size=256,
        shared_expert_intermediate_size=256, num_experts=4, num_experts_per_token=2,
    )  # fmt: skip
    monkeypatch.setattr(synthetic, "SHAPES", MappingProxyType({"wide": wide}))
    quantize("synthetic:wide", tmp_path / "wide", "fp8")
    with opened(str(tmp_path / "wide"), "as-stored") as one, opened(str(tmp_path / "wide"), "as-stored", 2) as two:
        assert two.checkpoint.weights["model.layers.0.mlp.experts.down_proj"].shape == (4, 256, 128)  # type: ignore[union-attr]
        assert (one.logits(IDS[:80]) - two.logits(IDS[:80])).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("model", "quant", "ranks", "reason"),
    [
        ("tiny", "fp8", 2, "k_proj.weight: a rank would hold rows 0 to 64: 64 rows of a 128 block of fp8"),
        ("tiny", "f32", 3, "tensor_parallel_size 3 does not divide 4 attention heads"),
        ("llama-tiny", "f32", 8, "tensor_parallel_size 8 does not divide 4 attention heads"),
    ],
)
def test_what_cannot_be_divided_is_refused(model: str, quant: str, ranks: int, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        LLM(f"synthetic:{model}", quant, "cpu", tensor_parallel_size=ranks)


def test_generating_fails_when_a_rank_dies() -> None:
    with opened("synthetic:llama-tiny", "f32", 2) as llm:
        assert llm.engine.ranks is not None
        pid = llm.engine.ranks._processes[0].pid
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        endless = [IDS] * 200
        with pytest.raises(LostRankError, match=f"rank 1 of the model .process {pid}. ended with status -9"):
            llm.generate(endless, replace(GREEDY, max_tokens=300))


@contextlib.contextmanager
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "engine", "serve", "--model", "synthetic:llama-tiny", "--quant", "f32"]
    command += ["--device", "cpu", "--tensor-parallel-size", "2", "--port", str(port), "--max-context", "4096"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Serving")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def test_a_server_ends_with_one_line_when_a_rank_dies_under_load() -> None:
    with server() as (process, url):
        (follower,) = psutil.Process(process.pid).children()
        body = {"model": "x", "prompt": "a", "max_tokens": 4000, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            follower.kill()
            assert any("rank 1" in line for line in lines)
        assert process.wait(20) == 1
        assert process.stderr is not None
        errors = process.stderr.read().strip().splitlines()
        assert errors[-1].startswith("sweq-engine: rank 1 of the model")
        assert not any("Traceback" in line for line in errors)


def test_other_ranks_end_with_a_killed_server() -> None:
    with server() as (process, _):
        (follower,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait(5)
        end = time.monotonic() + 10
        while follower.is_running() and follower.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "the follower outlives the first rank"
            time.sleep(0.05)
