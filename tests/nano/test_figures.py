"""Figures on held-out episodes, the same from torch and from the engine, and the card that shows them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import UserError
from engine.weights.files import read_json
from nano.card import card
from nano.card import main as write_card
from nano.evaluate import evaluate_levels, evaluate_torch
from nano.export import MODEL, export
from nano.model import Nano, initialise
from nano.plot import draw, joined
from nano.progress import read_chain, shown_path, write_record
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


PART = {"loss": 0.0123, "accuracy": 0.995, "edits_exact": 0.375, "episodes_with_edit": 128, "tokens": 9}


def record(**given: Any) -> dict[str, Any]:
    return {
        "command": "python -m nano.train --minutes 20", "commit": "abc", "device": "some GPU", "torch": "2.11",
        "seed": 3, "first_data_seed": 3000, "tokens_per_step": 131072, "init": None, "parameters": 11_270_000,
        "minutes": 20, "shape": {"num_hidden_layers": 8, "num_experts": 8, "num_experts_per_tok": 2},
        "rates": {"muon": 0.02, "embedding": 0.01, "rest": 0.004},
        "progress": {"elapsed": 1200.0, "step": 7000, "episodes": 500000, "tokens": 9e8, "trained_tokens": 2e8},
        "held_out": {}, "log": [{"step": 1, "tokens": 1e8, "loss": 0.5}, {"step": 2, "tokens": 2e8, "loss": 0.25}],
    } | given  # fmt: skip


def test_the_card_shows_what_was_recorded() -> None:
    held_out = {"mixed": PART | {"shares": [[0.25, 0.75], [0.5, 0.5]]}}
    text = card([record(held_out=held_out)], {"int4": {"mixed": PART | {"perplexity": 1.0124}}}, curve="../curve.png")
    for said in ("11.3 million", "`python -m nano.train --minutes 20`", "1200 s of 1200 s", "7,000 of up to 131,072"):
        assert said in text
    assert "| mixed | 128 | 0.0123 | 99.50% | 37.5% |" in text
    assert "| mixed | 25.0% | 75.0% |" in text
    assert "| int4 | mixed | 128 | 0.0123 | 1.0124 | 99.50% | 37.5% |" in text
    assert "| loss of a token at the end, nats | 0.2500 |" in text
    assert "38% of that part's edits exactly (int4)" in text
    assert "](../curve.png)" in text
    assert " met" not in text


@pytest.mark.parametrize(("count", "said"), [(11, "**not met**: 11 of 24"), (12, "**met**: 12 of 24")])
def test_the_card_says_whether_the_goal_is_met(count: int, said: str) -> None:
    text = card([record()], solved={"run": "Tasks", "levels": {"bf16": {"mixed": {"solved": count, "tasks": 24}}}})
    assert f"At bf16 this is {said} are solved" in text
    assert f"| bf16 | mixed | 24 | {count} (" in text


def write_run(folder: Path, run: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.pop("log")))
    (folder / "record.json").write_text(json.dumps(run))
    return folder


def test_runs_one_after_another_make_one_card_and_one_curve(tmp_path: Path) -> None:
    first = record(ended="early", held_out={"near": PART | {"shares": [[0.5, 0.5]]}})
    one = write_run(tmp_path / "one", first)
    two = write_run(tmp_path / "two", record(init="one/model", minutes=30, seed=4))
    with pytest.raises(UserError, match=r"one/record\.json: init is empty; a run that goes on from the weights"):
        read_chain([two, one])
    runs = read_chain([one, two])
    text = card(runs)
    assert "2 runs, each from the weights that the one before it left." in text
    assert "| time | 1200 s of 1200 s | 1200 s of 1800 s |" in text
    assert "| weights at the start | random | those of `one/model` |" in text
    assert "| ended | early | as planned |" in text
    assert "## Teacher-forced, after run 1 of 2," in text
    assert [row["tokens"] for row in joined(runs)] == [1e8, 2e8, 1e9, 1.1e9]
    draw(runs, tmp_path / "curve.png", {"near": PART})
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_the_shipped_card_is_made_of_the_records_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODEL.parents[1])
    runs = [str(run) for run in sorted(Path("nano/model/training").iterdir()) if run.is_dir()]
    made = Path("nano/model/.card-of-test.md")
    options = ["--curve", "docs/nano_loss.png"]
    for name in ("levels", "solved"):
        file = Path(f"nano/model/training/{name}.json")
        options += [f"--{name}", str(file)] if file.exists() else []
    monkeypatch.setattr("sys.argv", ["nano.card", *runs, str(made), *options])
    try:
        write_card()
        assert made.read_text() == (MODEL / "README.md").read_text()
    finally:
        made.unlink(missing_ok=True)


def test_records_name_no_place_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("/somewhere/else/run2")
    arguments = ["--out", str(out), "--init=/somewhere/else/run1/model", f"--x={tmp_path}/a b", "--minutes", "2"]
    monkeypatch.setattr("sys.argv", ["nano.train", *arguments, "/other/place"])
    write_record(tmp_path, {"commit": "abc"})
    assert shown_path(Path("/somewhere/else/run1/model"), out) == "run1/model"
    assert shown_path(Path("/place"), Path("/run")) == "place"
    assert shown_path(Path("runs/nano"), Path("runs/nano")) == "runs/nano"
    written = read_json(tmp_path / "record.json")["command"]
    assert written == "python -m nano.train --out run2 --init=model '--x=a b' --minutes 2 place"


def test_kept_records_name_no_place() -> None:
    for file in sorted((MODEL / "training").rglob("*.json*")):
        assert not re.search(r"(?<![\w.])/\w", file.read_text()), file
