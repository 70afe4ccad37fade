"""Conversations as passages to score: only what the assistant says counts, predicted from all that came before it.

A file has one JSON object a line, `{"messages": [...], "tools": [...]}`, with messages as chat clients send them and
`tools` where there are any. Prompts and answers are tokenized apart, as they are when a model is served.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import RequestError, UserError
from engine.llm import LLM
from engine.measure.perplexity import Passage, perplexity, score
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Tokenizer
from engine.weights.loader import Checkpoint


def holds_conversations(file: Path) -> bool:
    """By its name."""
    return file.suffix == ".jsonl"


def score_file(llm: LLM, file: Path, window: int, reference: LLM | None = None) -> dict[str, Any]:
    """`perplexity` of a text file's windows, or `score` of the answers in conversations. UserError for a bad file."""
    if holds_conversations(file):
        return score(llm, read_conversations(file, llm.checkpoint), reference)
    return perplexity(llm, _read(file), window, reference)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--text {file}: {error.strerror}; give a UTF-8 text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--text {file}: not UTF-8 at byte {error.start}; give a UTF-8 text file") from error


def read_conversations(file: Path, checkpoint: Checkpoint) -> list[Passage]:
    """The file's conversations through the checkpoint's chat template.

    UserError names the line that is no conversation or has no answer, and a checkpoint without a template.
    """
    if checkpoint.chat_template is None:
        raise UserError(f"--text {file}: the model has no chat template; give a text file that does not end in .jsonl")
    names = checkpoint.tokenizer.special_tokens
    template = ChatTemplate(checkpoint.chat_template, names, str(checkpoint.identity["model"]))
    lines = _read(file).splitlines()
    passages = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            passages += _passages(line, f"--text {file}, line {number}", template, checkpoint.tokenizer)
    if not passages:
        raise UserError(f"--text {file}: is empty; give a conversation a line")
    return passages


def _passages(line: str, where: str, template: ChatTemplate, tokenizer: Tokenizer) -> list[Passage]:
    try:
        given = json.loads(line)
        parts = list(_parts(given["messages"], given.get("tools"), template))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{where}: not an object with "messages" ({" ".join(str(error).split())})') from error
    except RequestError as error:
        raise UserError(f"{where}: {error}") from error
    if not parts:
        raise UserError(f"{where}: has no message of the assistant, so there is nothing to score")
    return [_tokenize(pieces, tokenizer) for pieces in parts]


def _tokenize(pieces: Sequence[str], tokenizer: Tokenizer) -> Passage:
    """Prompt, answer, prompt, answer ... as one passage."""
    ids: list[int] = []
    counted: list[bool] = []
    for number, text in enumerate(pieces):
        own = tokenizer.encode(text, affixes=False)
        ids += own
        counted += [number % 2 == 1] * len(own)
    return Passage(ids, counted)


def _parts(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, template: ChatTemplate
) -> Iterator[list[str]]:
    """Prompt, answer, prompt, answer ... of the rendered text, each answer without the white space behind it.

    Where the template changes what was said before, as those do that leave out earlier thoughts, a new list begins
    with the whole prompt.
    """
    pieces: list[str] = []
    done = ""
    for number, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        prompt = template.render(messages[:number], tools)
        whole = template.render(messages[: number + 1], tools, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise RequestError(f"messages[{number}]: this chat template does not continue its prompt with the answer")
        if pieces and not prompt.startswith(done):
            yield pieces
            pieces, done = [], ""
        pieces.append(prompt.removeprefix(done))
        done = whole.rstrip()
        pieces.append(done.removeprefix(prompt))
    if pieces:
        yield pieces
