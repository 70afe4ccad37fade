"""Draws the loss curve of a run, or of several of which each began with the weights of the one before.

python -m nano.plot RUN... FILE.png [--levels LEVELS.json]

LEVELS.json is what `python -m nano.evaluate --levels ...` printed of the last run's model; its first level is drawn.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from engine.errors import UserError
from engine.weights.files import read_json
from nano.progress import read_chain

_MILLION = 1e6


def draw(runs: Sequence[Mapping[str, Any]], file: Path, final: Mapping[str, Any] | None = None) -> None:
    """Loss of training and of held-out parts, and the share of exact edits, over the tokens seen: a PNG.

    `runs` are as of `nano.progress.read_chain`; a line stands where the next began. `final`, part -> figures, is what
    an evaluation found of the last weights.
    """
    rows = list(joined(runs))
    if final:
        rows.append({"tokens": sum(run["progress"]["tokens"] for run in runs), "held_out": final})
    train = [row for row in rows if "loss" in row]
    if not train:
        raise UserError(f"{file}: the run's log holds no loss yet; train for at least --log-every steps")
    figure = Figure(figsize=(8, 5), layout="constrained")
    losses, edits = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    losses.plot([row["tokens"] / _MILLION for row in train], [row["loss"] for row in train], label="training", lw=1)
    held_out = [row for row in rows if row.get("held_out")]
    for number, part in enumerate(held_out[0]["held_out"] if held_out else (), start=1):
        x = [row["tokens"] / _MILLION for row in held_out]
        for axes, figure_of in ((losses, "loss"), (edits, "edits_exact")):
            y = [row["held_out"][part][figure_of] for row in held_out]
            axes.plot(x, y, "o-", ms=4, label=part, color=f"C{number}", clip_on=False)
    for start in _starts(runs)[1:]:
        for axes in (losses, edits):
            axes.axvline(start / _MILLION, color="gray", lw=0.8, ls=":")
    losses.set(yscale="log", ylabel="loss of a token, nats")
    losses.legend()
    edits.set(xlabel="tokens seen, millions", ylabel="exact edits", xlim=(0, None), ylim=(0, 1))
    figure.savefig(file, dpi=150)


def _starts(runs: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many tokens had been seen when each run began."""
    return list(accumulate((run["progress"]["tokens"] for run in runs[:-1]), initial=0))


def joined(runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of all logs, tokens counted on."""
    for start, run in zip(_starts(runs), runs, strict=True):
        yield from (row | {"tokens": start + row["tokens"]} for row in run["log"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nano.plot", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="the --out of nano.train, of each run in order")
    parser.add_argument("file", type=Path)
    parser.add_argument("--levels", type=Path)
    options = parser.parse_args()
    try:
        final = next(iter(read_json(options.levels).values())) if options.levels else None
        draw(read_chain(options.runs), options.file, final)
    except UserError as error:
        print(f"nano.plot: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
