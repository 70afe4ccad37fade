"""Teacher-forced figures of an exported model on held-out episodes, in torch or at quantization levels of the engine.

    python -m nano.evaluate --model nano/model --episodes 200
    python -m nano.evaluate --model nano/model --episodes 50 --levels bf16 int8 int4

Prints one JSON object: part -> figures, or level -> part -> figures.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.llm import LLM
from nano.data.episodes import Episode, make_episode
from nano.export import load_exported
from nano.packing import Position, pack
from nano.shape import CHUNK
from nano.validation import HELD_OUT, Tally, Validation

Logits = Callable[[Sequence[int]], Tensor]
FIRST_SEED = 100_000
"""Of the episodes here: others than those that a run validates itself on."""


def tally(episodes: Sequence[Episode], logits: Logits) -> Tally:
    """The figures of what `logits` (token ids of length L to float32 [L, vocab]) predicts, episode by episode."""
    result = Tally()
    for episode in episodes:
        batch = pack([episode], Position())
        rows = logits(episode.token_ids.tolist())[torch.from_numpy(batch.places)].cpu()
        targets = torch.from_numpy(batch.targets)
        losses = torch.nn.functional.cross_entropy(rows, targets, reduction="none")
        result.add(losses.numpy(), (rows.argmax(-1) == targets).numpy(), batch.edits)
    return result


def with_perplexity(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures and `perplexity`, exp of the mean loss."""
    return figures | {"perplexity": math.exp(figures["loss"])}


def evaluate_torch(directory: Path, parts: Sequence[str], count: int, device: str) -> dict[str, Any]:
    """Part -> figures of the training model, with every layer's share of each expert ("shares", [layers][experts])."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_exported(directory, dtype=dtype).to(device)
    validation = Validation(count, 16384, 0, torch.device(device), parts, FIRST_SEED)
    with torch.no_grad():
        figures = validation.figures(model)
    return {part: with_perplexity(found) for part, found in figures.items()}


def evaluate_levels(directory: Path, parts: Sequence[str], count: int, levels: Sequence[str]) -> dict[str, Any]:
    """Level -> part -> figures of the engine's own forward pass."""
    made = {part: [make_episode(FIRST_SEED + n, part) for n in range(count)] for part in parts}
    longest = max(len(episode.token_ids) for episodes in made.values() for episode in episodes)
    results: dict[str, Any] = {}
    for level in levels:
        llm = LLM(str(directory), quant=level, max_running=1, max_context=longest + CHUNK)
        each = {part: tally(episodes, llm.logits).figures() for part, episodes in made.items()}
        results[level] = {part: with_perplexity(found) for part, found in each.items()}
        llm.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nano.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of an exported model")
    parser.add_argument("--parts", nargs="+", choices=("train", *HELD_OUT), default=HELD_OUT)
    parser.add_argument("--episodes", type=int, default=100, help="of each part")
    parser.add_argument("--levels", nargs="+", default=(), help="of the engine; none: the training model in torch")
    options = parser.parse_args()
    try:
        if options.levels:
            found = evaluate_levels(options.model, options.parts, options.episodes, options.levels)
        else:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            found = evaluate_torch(options.model, options.parts, options.episodes, device)
    except UserError as error:
        print(f"nano.evaluate: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
