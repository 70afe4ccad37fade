"""Packing, the optimizers, and whole small runs: what they leave, and that a resumed one goes on as if unbroken."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import UserError
from nano import makers, packing
from nano.check import try_step
from nano.data.episodes import Episode
from nano.export import load_exported, read_exported
from nano.model import DeltaRule, Nano
from nano.muon import Muon, Optimizers, Rates, is_matrix, orthogonalise
from nano.packing import Failures, Position, Source, arrange, pack
from nano.plot import draw
from nano.progress import read_chain, read_log
from nano.shape import CHUNK, NANO
from nano.train import Options, Trainer, main, parse, rate_scale, train

TINY: dict[str, Any] = dict(NANO) | {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "POOL", 8)
    monkeypatch.setattr(packing, "TASK", 8)
    monkeypatch.setattr(makers, "TASK", 8)


def options(out: Path, **given: Any) -> Options:
    fixed: dict[str, Any] = {"minutes": 1000.0, "seed": 1, "workers": 0, "tokens": 4096, "shape": TINY, "log_every": 1}
    return Options(out=out, **fixed | {"held_out": 1} | given)


def episode(length: int, masked: list[int], span: tuple[int, int] | None = None) -> Episode:
    mask = np.zeros(length, dtype=bool)
    mask[masked] = True
    ids = np.arange(1, length + 1, dtype=np.uint16)
    return Episode(ids, mask, (span,) if span else ())


def test_a_batch_predicts_exactly_the_masked_tokens() -> None:
    batch = pack([episode(130, [5, 129], (128, 130)), episode(10, [0, 3])], Position(0, 1))
    assert batch.token_ids.shape == (2, 4, CHUNK)
    flat = batch.token_ids.reshape(-1)
    assert batch.targets.tolist() == [6, 130, 4]  # a first token has none before it and is not predicted
    assert flat[batch.places].tolist() == [5, 129, 3]
    assert batch.edits.tolist() == [-1, 0, -1]
    assert flat[130:256].sum() == 0


def test_rows_of_a_batch_are_of_like_length_and_fit() -> None:
    lengths = np.random.default_rng(0).integers(900, 3000, 200).tolist()
    groups = arrange(lengths, 32768)
    assert sorted(index for group in groups for index in group) == list(range(200))
    sizes = [len(group) * packing.padded_width(max(lengths[i] for i in group)) for group in groups]
    assert max(sizes) <= 32768
    assert min(sizes) > 20000
    assert sum(sizes) < 1.1 * sum(lengths)


def test_data_continue_at_any_position_and_repeat_by_seed() -> None:
    source = Source(7, 8192, 0)
    stream = source.batches()
    first = [next(stream) for _ in range(8)]
    assert first[-1].after.pool > 0
    for at in (1, 6):
        again = next(Source(7, 8192, 0).batches(first[at - 1].after))
        assert np.array_equal(again.token_ids, first[at].token_ids)
    other = next(Source(8, 8192, 0).batches())
    assert other.token_ids.shape != first[0].token_ids.shape or (other.token_ids != first[0].token_ids).any()


def test_seeds_without_an_episode_are_tolerated_while_few() -> None:
    failures = Failures()
    failures.add(2000, ["seed 3: broken"] * 20)
    with pytest.raises(RuntimeError, match="43 of 2100 seeds gave no episode; the first: seed 3: broken"):
        failures.add(100, ["seed 2004: broken"] * 23)


def test_orthogonalise_brings_all_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 64), (3, 64, 32)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.4
        assert values.max() < 1.3
    assert orthogonalise(torch.zeros(1, 8, 8)).abs().max() == 0


def test_muon_trains_the_matrices_and_adamw_the_rest() -> None:
    names = [name for name, _ in Nano(TINY).named_parameters()]
    rest = {name.rsplit(".", 2)[-2] for name in names if not is_matrix(name)}
    holders = {"embed_tokens", "lm_head", "gate", "shared_expert_gate", "in_proj_ba", "conv1d", "linear_attn"}
    norms = {"norm", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm"}
    assert rest == holders | norms


def test_muon_moves_each_expert_by_its_own_orthogonal_step() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(2, 32, 8))
    weight.grad = torch.randn_like(weight)
    weight.grad[1] *= 1e-3  # a weak gradient moves its expert as far
    muon = Muon([("layer.experts.gate_up_proj", weight)], momentum=0.0, weight_decay=0.0)
    muon.step(0.1)
    steps = torch.linalg.svdvals(weight.detach().view(4, 16, 8)) / (0.1 * 2**0.5)
    assert steps.min() > 0.4
    assert steps.max() < 1.3


def test_gradients_that_are_not_finite_move_nothing() -> None:
    model = Nano(TINY)
    torch.nn.init.normal_(model.lm_head.weight)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    optimizers = Optimizers(model, Rates())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1.0)
    model.lm_head.weight.grad = torch.full_like(model.lm_head.weight, float("nan"))
    assert not optimizers.step(1.0).isfinite()
    for name, values in model.state_dict().items():
        assert (values - before[name]).abs().max() <= 0.01 * 0.02 * before[name].abs().max(), name


def test_rate_rises_then_falls_to_zero_with_the_time() -> None:
    assert [rate_scale(share) for share in (0.0, 0.01, 0.02, 1.0, 1.5)] == [0.0, 0.5, 1.0, 0.0, 0.0]
    assert rate_scale(0.51) == pytest.approx(0.5)


def losses(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_log(out) if "loss" in row}


def test_a_resumed_run_has_the_same_curve_as_one_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano.train.rate_scale", lambda _share: 0.5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(options(whole, max_steps=6, held_out=0))
    train(options(parts, max_steps=3, held_out=0))
    train(options(parts, max_steps=6, resume=True))
    assert losses(whole).keys() == losses(parts).keys() == set(range(1, 7))
    for step, loss in losses(whole).items():
        assert losses(parts)[step] == pytest.approx(loss, abs=1e-5), step
    assert losses(whole)[6] < losses(whole)[1] - 0.5
    record = json.loads((parts / "record.json").read_text())
    assert record["progress"]["step"] == 6
    assert record["progress"]["data"]["pool"] >= 1
    assert 0 <= record["held_out"]["near"]["edits_exact"] <= 1
    draw(read_chain([parts]), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    exported = load_exported(parts / "model")
    saved = torch.load(parts / "checkpoint.pt", weights_only=True)["model"]
    for name, values in exported.state_dict().items():
        assert torch.equal(values, saved[name].bfloat16().float()), name
    trainer = Trainer(options(tmp_path / "next", init=parts / "model"))
    assert torch.equal(trainer.model.lm_head.weight, read_exported(parts / "model")[1]["lm_head.weight"])


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint.pt: no such file, so there is nothing to resume"):
        train(options(tmp_path / "none", resume=True))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match=r"full: not empty; choose a new directory, or --resume"):
        train(options(tmp_path / "full"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--delta fla: its kernels need a CUDA device"):
            DeltaRule("fla")


def test_a_failing_compiler_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> Any:
        def call(*_values: object) -> None:
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model = Nano(TINY, compiled=True)
    try_step(model, 1024)
    assert "torch.compile fails here (RuntimeError: no compiler here): going on without it" in capsys.readouterr().out
    assert not model.functions.compiled


def test_sigterm_saves_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def terminated(trainer: Trainer, batch: Any) -> None:
        step(trainer, batch)
        if trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", terminated)
    train(options(tmp_path / "run", max_steps=50, held_out=0))
    assert json.loads((tmp_path / "run/record.json").read_text())["progress"]["step"] == 2


def test_the_command_line_names_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["nano.train", "--minutes", "1", "--out", str(tmp_path)]
    for more, said in (
        (["--layers", "3"], "--layers 3: a multiple of 4 is needed"),
        (["--resume"], "checkpoint.pt: no"),
    ):
        monkeypatch.setattr("sys.argv", [*command, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_a_run_names_its_commit_or_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--minutes", "1", "--out", "unused"]
    monkeypatch.setenv("PATH", "")  # no git
    assert parse([*arguments, "--commit", "abc"]).commit == "abc"
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "--commit: git cannot tell here which commit this source is of; give it" in capsys.readouterr().err
