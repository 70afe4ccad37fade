"""Figures on held-out episodes, the same from torch and from the engine, and the card that shows them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nano.card import card
from nano.evaluate import evaluate_levels, evaluate_torch
from nano.export import export
from nano.model import Nano, initialise
from nano.shape import NANO
from nano.validation import Tally

SHAPE: dict[str, Any] = dict(NANO) | {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip


def test_an_edit_counts_as_exact_only_if_each_of_its_tokens_is_likeliest() -> None:
    tally = Tally()
    edits = np.array([-1, 0, 0, -1, 1, 1])
    tally.add(np.arange(6.0), np.array([False, True, True, False, True, False]), edits)
    tally.add(np.zeros(2), np.array([True, True]), np.array([-1, 0]))
    figures = tally.figures()
    assert figures["edits_exact"] == pytest.approx(2 / 3)
    assert figures["loss"] == pytest.approx(15 / 8)
    assert (figures["accuracy"], figures["episodes_with_edit"], figures["tokens"]) == (5 / 8, 3, 8)


def test_torch_and_the_engine_find_the_same_figures(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = Nano(SHAPE)
    initialise(model, 4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(0.1 * torch.randn_like(weight))
    export(model, tmp_path)
    ours = evaluate_torch(tmp_path, ["near"], 1, "cpu")["near"]
    engine = evaluate_levels(tmp_path, ["near"], 1, ["f32"])
    assert engine["f32"]["near"]["loss"] == pytest.approx(ours["loss"], abs=1e-4)
    assert engine["f32"]["near"]["tokens"] == ours["tokens"] > 100
    shares = np.array(ours["shares"])
    assert shares.shape == (4, 4)
    assert np.allclose(shares.sum(1), 1, atol=1e-3)


def test_the_card_shows_what_was_recorded() -> None:
    part = {"loss": 0.0123, "accuracy": 0.995, "edits_exact": 0.875, "episodes_with_edit": 128, "tokens": 9}
    record = {
        "command": "python -m nano.train --minutes 20", "commit": "abc", "device": "some GPU", "torch": "2.11",
        "seed": 3, "first_data_seed": 3000, "tokens_per_step": 131072, "init": None, "parameters": 11_270_000,
        "shape": {"num_hidden_layers": 8, "num_experts": 8, "num_experts_per_tok": 2},
        "rates": {"muon": 0.02, "embedding": 0.01, "rest": 0.004},
        "progress": {"elapsed": 1200.0, "step": 7000, "episodes": 500000, "tokens": 9e8, "trained_tokens": 2e8},
        "held_out": {"near": part | {"shares": [[0.25, 0.75], [0.5, 0.5]]}},
    }  # fmt: skip
    text = card(record, {"int4": {"near": part | {"perplexity": 1.0124}}})
    for said in ("11.3 million", "`python -m nano.train --minutes 20`", "20.0 minutes", "7,000 of up to 131,072"):
        assert said in text
    assert "| near | 128 | 0.0123 | 99.50% | 87.5% |" in text
    assert "| near | 25.0% | 75.0% |" in text
    assert "| int4 | near | 0.0123 | 1.0124 | 87.5% |" in text
