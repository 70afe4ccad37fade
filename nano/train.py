"""Trains sweq-nano on generated episodes for a number of minutes.

    python -m nano.train --minutes 20 --out runs/nano

The learning rate follows the elapsed share of the minutes: up over the first 2%, then down to zero in a straight line,
so that a run of any length ends well. Every two minutes, on SIGTERM and at the end the run saves itself; --resume goes
on from there, --init starts anew from the weights of an exported model.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from nano.check import check_rule, try_step
from nano.export import export, read_exported
from nano.feed import DeviceBatch, Feed
from nano.model import Nano, Rule, initialise
from nano.muon import Optimizers, Rates
from nano.packing import Source
from nano.progress import (
    EXPORTED,
    Progress,
    append_log,
    drop_log_after,
    load_checkpoint,
    save_checkpoint,
    shown_path,
    source_commit,
    write_record,
)
from nano.shape import NANO
from nano.validation import Validation

BALANCE, ROUTER_Z = 0.01, 0.001
"""What the routers' two losses count beside the mean loss of a token."""
WARM_UP = 0.02
SHAPE_KEYS = ("num_hidden_layers", "hidden_size", "num_experts", "num_experts_per_tok", "vocab_size")
SEEDS_APART = 1_000_000_000
"""Between the data of runs with consecutive --seed."""


@dataclass(frozen=True)
class Options:
    """The command line of a run."""

    minutes: float
    out: Path
    seed: int
    workers: int
    resume: bool = False
    init: Path | None = None
    tokens: int = 131072
    delta: Rule = "own"
    compiled: bool = False
    device: str = "cpu"
    shape: Mapping[str, Any] = field(default_factory=lambda: NANO)
    rates: Rates = field(default_factory=Rates)
    held_out: int = 128
    save_every: float = 120.0
    log_every: int = 50
    max_steps: int | None = None
    commit: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What must not change when a run is resumed."""
        return {"seed": self.seed, "tokens": self.tokens, "layers": self.shape["num_hidden_layers"]}


def rate_scale(share: float) -> float:
    """Share of the peak learning rate at `share` of the time."""
    return max(0.0, min(1.0, share / WARM_UP, (1 - share) / (1 - WARM_UP)))


class Trainer:
    """One run: the model, its optimizers, and the progress that checkpoints keep."""

    def __init__(self, options: Options) -> None:
        self.options, self.device = options, torch.device(options.device)
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        self.model = _model(options).to(self.device)
        self.optimizers = Optimizers(self.model, options.rates)
        self.progress = Progress()
        self.stopped = False
        self._pending: list[Tensor] = []
        if options.resume:
            facts = (options.facts, self.device)
            self.progress = load_checkpoint(options.out, self.model, self.optimizers, *facts)
            drop_log_after(options.out, self.progress.step)

    def run(self) -> None:
        """Train until the time is used up, SIGTERM, or `max_steps`; saves, validates and exports on the way."""
        options = self.options
        source = Source(options.seed * SEEDS_APART, options.tokens, options.workers)
        feed = Feed(source, self.progress.data, self.device)
        validation = Validation(options.held_out, options.tokens, options.workers, self.device)
        try_step(self.model, options.tokens)
        started, before = time.monotonic(), self.progress.elapsed
        saved, last = started, (started, self.progress.tokens)
        try:
            while not self._done():
                self.step(feed.next())
                self.progress.elapsed = before + time.monotonic() - started
                if self.progress.step % options.log_every == 0:
                    last = self._log(last, feed, source)
                if time.monotonic() - saved > options.save_every:
                    self.save(validation)
                    saved = time.monotonic()
        finally:
            if self.progress.step:
                self.save(validation)
            feed.close()

    def _done(self) -> bool:
        steps = self.options.max_steps
        full = self.progress.elapsed >= 60 * self.options.minutes
        return self.stopped or full or (steps is not None and self.progress.step >= steps)

    def step(self, batch: DeviceBatch) -> None:
        """One update. The host does not wait for the device."""
        scale = rate_scale(self.progress.elapsed / (60 * self.options.minutes))
        seen = self.model(batch.token_ids, batch.valid, batch.places, batch.targets)
        loss = seen.losses.mean()
        (loss + BALANCE * seen.routers[0] + ROUTER_Z * seen.routers[1]).backward()
        norm = self.optimizers.step(scale)
        figures = (loss.detach(), seen.hits.float().mean(), *seen.routers.detach(), norm)
        self._pending.append(torch.stack((*figures, seen.shares.min(), seen.shares.max())))
        progress = self.progress
        progress.step += 1
        progress.tokens += batch.tokens
        progress.trained_tokens += batch.targets.shape[0]
        progress.episodes += batch.rows
        progress.data = batch.after

    def _log(self, last: tuple[float, int], feed: Feed, source: Source) -> tuple[float, int]:
        values = torch.stack(self._pending)
        self._pending.clear()
        skipped = int((~values[:, 4].isfinite()).sum())
        mean = values.nanmean(0).tolist()
        now, progress = time.monotonic(), self.progress
        row = {
            "step": progress.step, "elapsed": round(progress.elapsed, 2), "tokens": progress.tokens,
            "episodes": progress.episodes, "loss": mean[0], "accuracy": mean[1], "balance": mean[2],
            "router_z": mean[3], "grad_norm": mean[4],
            "least_share": values[:, 5].min().item(), "most_share": values[:, 6].max().item(),
            "rate": rate_scale(progress.elapsed / (60 * self.options.minutes)), "not_finite": skipped,
            "tokens_per_second": round((progress.tokens - last[1]) / max(now - last[0], 1e-9)),
            "waited": round(feed.waited, 2), "failed_seeds": source.failures.failed,
            "too_long": source.failures.too_long,
        }  # fmt: skip
        append_log(self.options.out, row)
        print(
            f"step {progress.step}  {progress.elapsed:.0f} s  loss {mean[0]:.4f}  right {mean[1]:.4f}  "
            f"balance {mean[2]:.3f}  {row['tokens_per_second']} tokens/s  waited {feed.waited:.1f} s",
            flush=True,
        )
        return now, progress.tokens

    def save(self, validation: Validation) -> None:
        """Checkpoint, export, then figures on held-out episodes: in the log and the record."""
        options, progress = self.options, self.progress
        save_checkpoint(options.out, self.model, self.optimizers, progress, options.facts)
        export(self.model, options.out / EXPORTED)
        figures = validation.figures(self.model)
        if figures:
            row = {"step": progress.step, "elapsed": round(progress.elapsed, 2), "tokens": progress.tokens}
            append_log(options.out, row | {"held_out": figures})
            print(f"step {progress.step}  held out: {_in_words(figures)}", flush=True)
        facts = {
            "minutes": options.minutes, "seed": options.seed, "first_data_seed": options.seed * SEEDS_APART,
            "tokens_per_step": options.tokens, "rates": asdict(options.rates), "delta": options.delta,
            "compiled": self.model.functions.compiled,
            "init": shown_path(options.init, options.out) if options.init else None,
            "shape": {key: self.model.values[key] for key in SHAPE_KEYS},
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
        }  # fmt: skip
        write_record(options.out, facts | {"commit": options.commit, "progress": asdict(progress), "held_out": figures})


def _in_words(figures: dict[str, dict[str, Any]]) -> str:
    parts = (f"{part} loss {f['loss']:.4f}, edits {f['edits_exact']:.3f}" for part, f in figures.items())
    return "; ".join(parts)


def _model(options: Options) -> Nano:
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    values, tensors = dict(options.shape), None
    if options.init is not None:
        values, tensors = read_exported(options.init)
    model = Nano(values, dtype, options.delta, options.compiled)
    if tensors is None:
        initialise(model, options.seed)
    else:
        model.load_state_dict(tensors)
    return model


def train(options: Options) -> None:
    """Run `options`; UserError for what cannot be started as asked."""
    if options.out.is_dir() and any(options.out.iterdir()) and not options.resume:
        raise UserError(f"--out {options.out}: not empty; choose a new directory, or --resume")
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    if options.delta == "fla":
        check_rule("fla", device)
    trainer = Trainer(options)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        trainer.stopped = True

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        trainer.run()
    finally:
        signal.signal(signal.SIGTERM, previous)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of a command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m nano.train", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True, help="of training, from the first step")
    parser.add_argument("--out", type=Path, required=True, help="directory of checkpoints, log, record and model")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")
    parser.add_argument(
        "--init", type=Path, help="an exported model to start from; give another --seed for other episodes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes making episodes"
    )
    parser.add_argument("--tokens", type=int, default=131072, help="padded tokens per step")
    parser.add_argument("--delta", choices=("own", "fla"), default="own", help="whose gated delta rule")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=cuda, help="use torch.compile")
    parser.add_argument("--layers", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--muon-rate", type=float, default=Rates.muon)
    parser.add_argument(
        "--adam-rate", type=float, default=Rates.rest, help="of norms and gates; head and embedding follow"
    )
    parser.add_argument("--held-out", type=int, default=128, help="episodes of each part to validate on; 0: none")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--commit", default=source_commit(), help="of this source; needed where git cannot tell")
    given = vars(parser.parse_args(arguments))
    scale = given.pop("adam_rate") / Rates.rest
    rates = Rates(given.pop("muon_rate"), Rates.embedding * scale, Rates.head * scale, Rates.rest * scale)
    if given["init"] is not None and given["resume"]:
        parser.error("--init and --resume exclude each other: a checkpoint has its own weights")
    if not given["commit"]:
        parser.error("--commit: git cannot tell here which commit this source is of; give it, for the record")
    if given["minutes"] <= 0 or given["tokens"] < 4096:
        parser.error("--minutes must be above 0 and --tokens at least 4096")
    layers, compiled = given.pop("layers"), given.pop("compile")
    if layers <= 0 or layers % NANO["full_attention_interval"]:
        parser.error(f"--layers {layers}: a multiple of {NANO['full_attention_interval']} is needed")
    shape = dict(NANO) | {"num_hidden_layers": layers}
    return Options(**given, compiled=compiled, shape=shape, device="cuda" if cuda else "cpu", rates=rates)


def main() -> None:
    try:
        train(parse())
    except UserError as error:
        print(f"nano.train: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
