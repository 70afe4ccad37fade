"""The tokenizer of sweq-nano: byte-level BPE, and its training on rendered episodes.

    python -m nano.data.tokenizer --episodes 3000

writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` of `nano/model/`.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from engine.text.tokenizer import Tokenizer
from harness.starter.generate.words import PACKAGE_BACK, PACKAGE_FRONT

MODEL = Path(__file__).parents[1] / "model"
"""The model's folder: chat template, tokenizer and, once it is trained, weights."""

VOCABULARY = 4096
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CALL_START, CALL_END = "<tool_call>", "</tool_call>"
PADDING = 0
"""The id of `END_OF_TEXT`, which no episode holds."""

WORDS = "|".join(
    (
        r"</?(?:function|parameter)(?:=\w+)?>",  # a tag of a call
        r"\n+ *",  # line ends with the next line's indentation
        r"[ _]?\p{Lu}?\p{Ll}+",  # snake_case and CamelCase names fall into their words
        r"[ _]?\p{Lu}+(?!\p{Ll})",
        r"\p{L}",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}_]+",
        r"_+",
        r"[^\S\n]+(?!\S)",
        r"[^\S\n]+",
    )
)
"""What merges never cross. A word is the same token or tokens wherever its name occurs, so that it can be copied, and
no word holds characters from both sides of the beginning of a run of line ends, so that lines can be cached."""

_MOST_OF_A_LINE = 64
"""How often training reads the same line: otherwise the task prompt, the same everywhere, would take the merges."""

_PACKAGE = re.compile(rf"\b({'|'.join(PACKAGE_FRONT)})({'|'.join(PACKAGE_BACK)})\b")
_LINE = re.compile(r"\n*[^\n]+|\n+")
_MOST_CACHED = 200_000


class LineEncoder:
    """`Tokenizer.encode` of rendered text, by cached lines: most lines of an episode occur in many others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, as `tokenizer.encode(text, affixes=False)` gives them."""
        known = self._known
        if len(known) > _MOST_CACHED:
            known.clear()
        ids: list[int] = []
        for line in _LINE.findall(text):
            found = known.get(line)
            if found is None:
                found = known[line] = self._tokenizer.encode(line, affixes=False)
            ids += found
        return ids


@cache
def load_tokenizer() -> Tokenizer:
    """The tokenizer as the engine loads it from the model's folder."""
    return Tokenizer.from_directory(MODEL)


def split_packages(text: str) -> str:
    """The text with every package's name in its two words, so that no merge learns one name whole: held-out names are
    glued from the same words, and must look no different."""
    return _PACKAGE.sub(r"\1\n\2", text)


def thin_out(texts: Iterator[str]) -> Iterator[str]:
    """The lines of all texts, none more than `_MOST_OF_A_LINE` times."""
    seen: Counter[str] = Counter()
    for text in texts:
        for line in _LINE.findall(text):
            seen[line] += 1
            if seen[line] <= _MOST_OF_A_LINE:
                yield line


def train_tokenizer(texts: Iterator[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of `VOCABULARY` ids, specials included, from rendered conversations."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    added = [AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, TURN_START, TURN_END)]
    added += [AddedToken(text, special=False, normalized=False) for text in (CALL_START, CALL_END)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(thin_out(texts), trainer)
    return backend


def save_tokenizer(backend: tokenizers.Tokenizer, folder: Path) -> None:
    """Write what the engine and `transformers` read a tokenizer from."""
    backend.save(str(folder / "tokenizer.json"))
    end, padding = backend.token_to_id(TURN_END), backend.token_to_id(END_OF_TEXT)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 65536,
    }
    generation = {"eos_token_id": [end, padding], "pad_token_id": padding, "do_sample": False}
    for name, value in (("tokenizer_config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the tokenizer on episodes of the seeds from `--first-seed` on, and write its files."""
    from nano.data.episodes import make_conversation
    from nano.data.render import render

    parser = argparse.ArgumentParser(prog="python -m nano.data.tokenizer", description=__doc__)
    parser.add_argument("--episodes", type=int, default=3000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=MODEL)
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.episodes)
    backend = train_tokenizer(split_packages(render(make_conversation(seed))) for seed in seeds)
    save_tokenizer(backend, options.out)
    print(f"{options.out}: {backend.get_vocab_size()} ids from {len(seeds)} episodes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
