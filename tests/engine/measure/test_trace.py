"""The agents' trace on a small scale: what must be found in the cache is, and it changes no text."""

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from engine.__main__ import app
from engine.errors import UserError
from engine.measure.trace import Trace

SIZES = ["--conversations", "2", "--turns", "3", "--first-prompt", "300", "--generated", "10", "--tool-tokens", "40"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def bench(*options: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["bench", "agent", "--model", "synthetic:tiny", *SIZES, *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_resent_tokens_come_from_the_cache_and_texts_are_the_same() -> None:
    figures = bench("--check")
    assert figures["identical_text"] is True
    assert figures["resent_tokens"] == 2 * (310 + 360)
    assert figures["cached_tokens"] == 2 * (256 + 256)
    assert figures["without_cache"]["cached_tokens"] == 0
    assert figures["generated_tokens"] == 60
    assert 0 < figures["ttft_p50"] <= figures["ttft_p90"]


def test_a_conversation_that_is_over_leaves_nothing_behind() -> None:
    engine = bench("--no-deterministic")["engine"]
    assert (engine["blocks_cached"], engine["blocks_used"], engine["snapshots_device"]) == (0, 0, 0)
    assert engine["prefix_hit_tokens"] == 2 * (256 + 320)


def test_a_trace_without_turns_is_refused() -> None:
    with pytest.raises(UserError, match="turns is 0; it must be at least 1"):
        Trace(turns=0).check()
