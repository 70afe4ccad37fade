"""Writes the model card from what a run, or several one after another, recorded, and what evaluations found.

    python -m nano.card RUN... nano/model/README.md [--levels LEVELS.json] [--solved SOLVED.json] [--curve CURVE.png]

LEVELS.json is what `python -m nano.evaluate --levels ...` printed. SOLVED.json says what agents with this model solved
end to end: {"run": what was run, in words, "levels": {level: {part: {"solved": 3, "tasks": 24}}}}.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.weights.files import read_json, replacing
from nano.progress import read_chain

GOAL_PART, GOAL = "mixed", 0.5
"""Of the tasks of this part, this share is to be solved end to end."""

INTRODUCTION = """\
# sweq-nano

A Qwen3-Next-architecture model of {parameters:.1f} million parameters, in bfloat16: {num_hidden_layers} layers, three
of Gated DeltaNet to one of gated attention, each with {num_experts} experts, of which a token takes
{num_experts_per_tok}, and a shared one.

It is a demonstration and a test instrument. It was trained on generated episodes and codes nothing else: in each, an
agent repairs one bug of a small generated Python package through tool calls."""


Record = Mapping[str, Any]
Levels = Mapping[str, Mapping[str, Mapping[str, Any]]]


def card(records: Sequence[Record], levels: Levels | None = None, solved: Record | None = None, curve: str = "") -> str:
    """The card as Markdown.

    `records` are as of `nano.progress.read_chain`, `levels` and `solved` as in the files of the command, and `curve` is
    the path of the loss curve as seen from the card.
    """
    last = records[-1]
    parts = [
        INTRODUCTION.format(**last["shape"], parameters=last["parameters"] / 1e6),
        "\n".join(_goal(levels, solved["levels"] if solved else {})),
    ]
    if solved:
        parts.append("\n".join(_solved(solved)))
    if levels:
        parts.append("\n".join(_levels(levels)))
    parts.append("\n".join(_training(records)))
    if curve:
        parts.append(f"![Loss of a token and share of exact edits over the tokens seen]({curve})")
    for number, record in enumerate(records, start=1):
        if record["held_out"]:
            when = f", after run {number} of {len(records)}" if len(records) > 1 else ""
            parts.append("\n".join(_held_out(record["held_out"], when)))
            parts.append("\n".join(_shares(record["held_out"])))
    return "\n".join(part + "\n" for part in parts)


def _goal(levels: Levels | None, solved: Levels) -> Iterator[str]:
    """Whether the goal is met; where nobody has measured that, what is known instead."""
    yield from ("## The goal", "")
    yield f"Agents with it should solve {GOAL:.0%} of the tasks of the part *{GOAL_PART}*: families of code"
    yield "that training has, with kinds of bug that they never have there."
    for level, parts in solved.items():
        if GOAL_PART in parts:
            found = parts[GOAL_PART]
            share = found["solved"] / found["tasks"]
            met = "**met**" if share >= GOAL else "**not met**"
            yield f"At {level} this is {met}: {found['solved']} of {found['tasks']} are solved, {share:.0%}."
    edits = {level: parts[GOAL_PART]["edits_exact"] for level, parts in (levels or {}).items() if GOAL_PART in parts}
    if edits:
        level, share = next(iter(edits.items()))
        yield f"Given the expert's work up to there, it writes {share:.0%} of that part's edits exactly ({level})."


def _solved(solved: Record) -> Iterator[str]:
    yield from ("## Solved end to end", "", f"{solved['run']}.", "")
    yield from ("| level | part | tasks | solved |", "| --- | --- | ---: | ---: |")
    for level, parts in solved["levels"].items():
        for part, found in parts.items():
            share = found["solved"] / found["tasks"]
            yield f"| {level} | {part} | {found['tasks']} | {found['solved']} ({share:.1%}) |"


_ROWS: Mapping[str, Callable[[Record], str]] = {
    "command": lambda run: f"`{run['command']}`",
    "commit": lambda run: run["commit"] or "not known on the machine that trained it",
    "seed of weights and order": lambda run: str(run["seed"]),
    "first seed of the data": lambda run: f"{run['first_data_seed']}, then one after another",
    "weights at the start": lambda run: f"those of `{run['init']}`" if run["init"] else "random",
    "device": lambda run: f"{run['device']}, torch {run['torch']}",
    "time": lambda run: f"{run['progress']['elapsed']:.0f} s of {60 * run['minutes']:.0f} s",
    "ended": lambda run: run.get("ended", "as planned"),
    "steps": lambda run: f"{run['progress']['step']:,} of up to {run['tokens_per_step']:,} padded tokens",
    "episodes": lambda run: f"{run['progress']['episodes']:,}",
    "tokens": lambda run: f"{run['progress']['tokens'] / 1e6:.1f} million",
    "tokens trained on": lambda run: f"{run['progress']['trained_tokens'] / 1e6:.1f} million",
    "peak rate of Muon": lambda run: f"{run['rates']['muon']:g}",
    "peak rates of AdamW": lambda run: f"embedding {run['rates']['embedding']:g}, others {run['rates']['rest']:g}",
    "loss of a token at the end, nats": lambda run: _last_loss(run["log"]),
}


def _training(records: Sequence[Record]) -> Iterator[str]:
    yield from ("## Training", "")
    if len(records) > 1:
        yield f"{len(records)} runs, each from the weights that the one before it left."
        yield ""
    yield "| |" + "".join(f" run {number} |" if len(records) > 1 else " |" for number in range(1, len(records) + 1))
    yield "| --- |" + " --- |" * len(records)
    for name, show in _ROWS.items():
        yield f"| {name} | " + " | ".join(show(record) for record in records) + " |"


def _last_loss(log: Sequence[Mapping[str, Any]]) -> str:
    losses = [row["loss"] for row in log if "loss" in row]
    return f"{losses[-1]:.4f}" if losses else "not logged"


def _held_out(held_out: Mapping[str, Any], when: str) -> Iterator[str]:
    yield from (f"## Teacher-forced{when}, on episodes that training never saw", "")
    yield "| part | episodes | loss of a token, nats | likeliest token right | whole edit right |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for part, found in held_out.items():
        edits = "" if found["edits_exact"] is None else f"{found['edits_exact']:.1%}"
        yield f"| {part} | {found['episodes_with_edit']} | {found['loss']:.4f} | {found['accuracy']:.2%} | {edits} |"


def _shares(held_out: Mapping[str, Any]) -> Iterator[str]:
    yield "Share of a layer's choices that its least and most used expert get:"
    yield ""
    yield "| part | least | most |"
    yield "| --- | ---: | ---: |"
    for part, found in held_out.items():
        every = [share for layer in found["shares"] for share in layer]
        yield f"| {part} | {min(every):.1%} | {max(every):.1%} |"


def _levels(levels: Levels) -> Iterator[str]:
    yield from ("## By quantization level, teacher-forced on episodes that training never saw", "")
    yield "| level | part | episodes | loss of a token, nats | perplexity | likeliest token right | whole edit right |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for level, parts in levels.items():
        for part, found in parts.items():
            losses = f"{found['loss']:.4f} | {found['perplexity']:.4f} | {found['accuracy']:.2%}"
            yield f"| {level} | {part} | {found['episodes_with_edit']} | {losses} | {found['edits_exact']:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nano.card", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="the --out of nano.train, of each run in order")
    parser.add_argument("file", type=Path)
    parser.add_argument("--levels", type=Path)
    parser.add_argument("--solved", type=Path)
    parser.add_argument("--curve", type=Path)
    options = parser.parse_args()
    try:
        levels, solved = (read_json(file) if file else None for file in (options.levels, options.solved))
        curve = os.path.relpath(options.curve, options.file.parent) if options.curve else ""
        text = card(read_chain(options.runs), levels, solved, curve)
    except UserError as error:
        print(f"nano.card: {error}", file=sys.stderr)
        sys.exit(2)
    with replacing(options.file) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
