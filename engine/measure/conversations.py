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
    passages = [_passage(line, f"--text {file}, line {n}", template, checkpoint.tokenizer) for n, line in _kept(lines)]
    if not passages:
        raise UserError(f"--text {file}: is empty; give a conversation a line")
    return passages


def _kept(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _passage(line: str, where: str, template: ChatTemplate, tokenizer: Tokenizer) -> Passage:
    try:
        given = json.loads(line)
        messages, tools = given["messages"], given.get("tools")
        pieces = list(_pieces(messages, tools, template))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{where}: not an object with "messages" ({" ".join(str(error).split())})') from error
    except RequestError as error:
        raise UserError(f"{where}: {error}") from error
    if not pieces:
        raise UserError(f"{where}: has no message of the assistant, so there is nothing to score")
    ids: list[int] = []
    counted: list[bool] = []
    for text, is_answer in pieces:
        own = tokenizer.encode(text, affixes=False)
        ids += own
        counted += [is_answer] * len(own)
    return Passage(ids, counted)


def _pieces(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, template: ChatTemplate
) -> Iterator[tuple[str, bool]]:
    """Prompt, answer, prompt, answer ... of the rendered text up to the end of the last answer, without white space."""
    done = ""
    for number, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        prompt = template.render(messages[:number], tools)
        whole = template.render(messages[: number + 1], tools, add_generation_prompt=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise RequestError(f"messages[{number}]: this chat template changes what was said before")
        yield prompt.removeprefix(done), False
        done = whole.rstrip()
        yield done.removeprefix(prompt), True
