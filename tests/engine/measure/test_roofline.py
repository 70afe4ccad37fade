"""Limits against bytes counted from loaded weights, and against the published table of the real shape."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.__main__ import app
from engine.measure.roofline import H200, decode_limit, level_bytes, prefill_limit
from engine.measure.sweep import driver_in
from engine.weights.loader import load, memory_report
from engine.weights.synthetic import SHAPES

REAL = SHAPES["qwen3-coder-next"]


@pytest.mark.parametrize("level", ["f32", "bf16", "fp8", "int8", "int4", "int3", "int2"])
def test_bytes_are_those_in_memory(level: str) -> None:
    assert level_bytes(SHAPES["tiny"], level) == memory_report(load("synthetic:tiny", level))


@pytest.mark.parametrize(
    ("batch", "context", "tokens_per_second"), [(1, 0, 1052), (8, 32768, 1608), (32, 32768, 1985), (128, 32768, 2802)]
)
def test_decode_limits_of_the_official_fp8_layout(batch: int, context: int, tokens_per_second: float) -> None:
    """Counted tensor by tensor in the project's notes, independently of this code."""
    assert decode_limit(REAL, level_bytes(REAL, "fp8"), batch, context, H200) == pytest.approx(
        tokens_per_second, rel=0.02
    )


def test_prefill_limit_is_of_operations_for_long_prompts_and_of_bytes_for_short_ones() -> None:
    sizes = level_bytes(REAL, "fp8")
    assert prefill_limit(REAL, sizes, 4096, H200) == pytest.approx(111e3, rel=0.1)
    assert prefill_limit(REAL, sizes, 512, H200) == pytest.approx(27.6e3, rel=0.1)


def test_command_line() -> None:
    options = ["bench", "roofline", "--model", "synthetic:qwen3-coder-next", "--quant", "fp8", "--context", "2048"]
    printed = json.loads(CliRunner().invoke(app, options).stdout)
    assert printed["weights_bytes"] == pytest.approx(74.9 * 2**30, rel=0.01)
    assert printed["decode_tokens_per_second"] == pytest.approx(1040, rel=0.02)


def test_sweep_writes_table_and_plot(tmp_path: Path) -> None:
    options = ["--batches", "1,2", "--context", "8", "--prompts", "16,32", "--tokens", "4", "--repeats", "1"]
    where = ["--model", "synthetic:tiny", "--quant", "bf16", "--device", "cpu", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["bench", "sweep", *where, *options])
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "tiny-bf16.json").read_text())
    assert [figure["kind"] for figure in kept["figures"]] == ["decode", "decode", "prefill", "prefill"]
    assert all(figure["share"] > 0 for figure in kept["figures"])
    assert (tmp_path / "tiny-bf16.png").stat().st_size > 5000
    assert "| decode, batch 2, context 8 |" in (tmp_path / "tiny-bf16.md").read_text()


def test_the_driver_is_found_in_either_report() -> None:
    for kind in ("UNIX x86_64 Kernel Module", "UNIX Open Kernel Module for x86_64"):
        assert driver_in(f"NVRM version: NVIDIA {kind}  580.159.04  Release Build") == "580.159.04"
