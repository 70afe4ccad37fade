"""Draws the loss curve of a run.

python -m nano.plot RUN FILE.png
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from engine.errors import UserError
from nano.progress import read_log

_MILLION = 1e6


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Loss of training and of held-out parts, and the share of exact edits, over the tokens seen: a PNG."""
    train = [row for row in rows if "loss" in row]
    if not train:
        raise UserError(f"{file}: the run's log holds no loss yet; train for at least --log-every steps")
    figure = Figure(figsize=(8, 5), layout="constrained")
    losses, edits = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    losses.plot([row["tokens"] / _MILLION for row in train], [row["loss"] for row in train], label="training", lw=1)
    held_out = [row for row in rows if row.get("held_out")]
    for part in held_out[0]["held_out"] if held_out else ():
        x = [row["tokens"] / _MILLION for row in held_out]
        losses.plot(x, [row["held_out"][part]["loss"] for row in held_out], "o-", ms=3, label=part)
        edits.plot(x, [row["held_out"][part]["edits_exact"] for row in held_out], "o-", ms=3, label=part)
    losses.set(yscale="log", ylabel="loss of a token, nats")
    losses.legend()
    edits.set(xlabel="tokens seen, millions", ylabel="exact edits", ylim=(0, 1))
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nano.plot", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the --out of nano.train")
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    try:
        draw(read_log(options.run), options.file)
    except UserError as error:
        print(f"nano.plot: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
