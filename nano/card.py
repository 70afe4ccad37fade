"""Writes the model card from what a run recorded and what an evaluation found.

    python -m nano.card RUN/record.json nano/model/README.md [--levels LEVELS.json]

LEVELS.json is what `python -m nano.evaluate --levels ...` printed.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.weights.files import read_json, replacing

INTRODUCTION = """\
# sweq-nano

A Qwen3-Next-architecture model of {parameters:.1f} million parameters, in bfloat16: {num_hidden_layers} layers, three
of Gated DeltaNet to one of gated attention, each with {num_experts} experts, of which a token takes
{num_experts_per_tok}, and a shared one.

It is a demonstration and a test instrument. It was trained on generated episodes and codes nothing else: in each, an
agent repairs one bug of a small generated Python package through tool calls.
"""


def card(record: Mapping[str, Any], levels: Mapping[str, Any] | None = None) -> str:
    """The card as Markdown. `record` is a run's record.json; `levels` maps level -> part -> figures."""
    introduction = INTRODUCTION.format(**record["shape"], parameters=record["parameters"] / 1e6)
    parts = [introduction, "\n".join(_training(record))]
    if record["held_out"]:
        parts.append("\n".join(_held_out(record["held_out"])))
        parts.append("\n".join(_shares(record["held_out"])))
    if levels:
        parts.append("\n".join(_levels(levels)))
    return "\n".join(part + "\n" for part in parts)


def _training(record: Mapping[str, Any]) -> Iterator[str]:
    progress = record["progress"]
    yield from ("## Training", "", "| | |", "| --- | --- |")
    yield f"| command | `{record['command']}` |"
    yield f"| commit | {record['commit'] or 'not known on the machine that trained it'} |"
    yield f"| seed of weights and order | {record['seed']} |"
    yield f"| first seed of the data | {record['first_data_seed']}, then one after another |"
    if record["init"]:
        yield f"| weights at the start | those of `{record['init']}` |"
    yield f"| device | {record['device']}, torch {record['torch']} |"
    yield f"| time | {progress['elapsed'] / 60:.1f} minutes |"
    yield f"| steps | {progress['step']:,} of up to {record['tokens_per_step']:,} padded tokens |"
    yield f"| episodes | {progress['episodes']:,} |"
    seen, trained = progress["tokens"] / 1e6, progress["trained_tokens"] / 1e6
    yield f"| tokens | {seen:.1f} million, {trained:.1f} million trained on |"
    rates = record["rates"]
    yield f"| peak rates | Muon {rates['muon']:g}; AdamW: embedding {rates['embedding']:g}, others {rates['rest']:g} |"


def _held_out(held_out: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Teacher-forced, on episodes that training never saw", "")
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


def _levels(levels: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## By quantization level, teacher-forced", "")
    yield "| level | part | loss of a token, nats | perplexity | whole edit right |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for level, parts in levels.items():
        for part, found in parts.items():
            figures = f"{found['loss']:.4f} | {found['perplexity']:.4f} | {found['edits_exact']:.1%}"
            yield f"| {level} | {part} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nano.card", description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--levels", type=Path)
    options = parser.parse_args()
    text = card(read_json(options.record), read_json(options.levels) if options.levels else None)
    with replacing(options.file) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
