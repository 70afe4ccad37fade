"""Text to token ids and back, for byte-level BPE vocabularies from GGUF metadata or a Hugging Face directory."""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from engine.errors import CheckpointError, RequestError, UserError

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5

PROBE = 4
"""A text of more than so many characters per token that it may have is tokenized in growing beginnings first."""

STOP_NAMES = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")
"""Tokens that end a turn or a document in the families served here; a GGUF file names only one of them."""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS_AND_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{LETTERS_AND_REST}",
    "llama3": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{LETTERS_AND_REST}",
}
"""The split expressions that the Qwen2 and Llama 3 checkpoints carry in their own tokenizer.json."""

PRE_TOKENIZERS = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "smollm": "smollm",
    "qwen2": "qwen2",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
}
"""`tokenizer.ggml.pre` of a GGUF file -> how text is split before merges."""


class Tokenizer:
    """A byte-level BPE vocabulary with its special tokens.

    `vocab_size` counts the ids that stand for something: rows of the embedding at or beyond it are padding and must
    never be sampled. `stop_ids` are the ids that end a generation. `special_tokens` maps roles (`bos_token`, ...) to
    their text, and `chat_template` is the checkpoint's own template or None. Thread-safe.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        stop_ids: Iterable[int],
        special_tokens: Mapping[str, str],
        chat_template: str | None = None,
    ) -> None:
        self.stop_ids = frozenset(stop_ids)
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        self._backend = backend
        self._bytes = _token_bytes(backend)
        self._special_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], where: str = "GGUF metadata") -> "Tokenizer":
        """Build the tokenizer that GGUF key-value metadata describes.

        `where` names the file in errors. Raises CheckpointError for a missing key, a tokenizer model other than
        byte-level BPE ("gpt2") or an unknown `tokenizer.ggml.pre`. Keys: the GGUF specification (ggml, docs/gguf.md).
        """
        model = _required(metadata, "tokenizer.ggml.model", where)
        if model != "gpt2":
            raise CheckpointError(f"{where}: tokenizer.ggml.model is {model!r}; supported: 'gpt2' (byte-level BPE)")
        backend = _gguf_backend(metadata, where)
        special = _gguf_special_tokens(metadata)
        eos = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        return cls(
            backend,
            stop_ids={int(i) for i in eos if i is not None} | _ids_of(backend, STOP_NAMES),
            special_tokens=special,
            chat_template=metadata.get("tokenizer.chat_template"),
        )

    @classmethod
    def from_directory(cls, path: Path) -> "Tokenizer":
        """Read tokenizer.json and, where present, tokenizer_config.json, generation_config.json and the template.

        Raises CheckpointError when tokenizer.json is missing, unreadable or not byte-level BPE.
        """
        file = path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{path}: no tokenizer.json; a model directory needs one")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise CheckpointError(f"{file}: not a readable tokenizer: {_first_line(error)}") from error
        if "ByteLevel" not in json.dumps(json.loads(backend.to_str()).get("decoder")):
            raise CheckpointError(f"{file}: its decoder is not ByteLevel; only byte-level BPE is supported")
        config = _read_json(path / "tokenizer_config.json")
        special = _config_special_tokens(config)
        names = [special[role] for role in ("eos_token",) if role in special]
        return cls(
            backend,
            stop_ids=_generation_eos(path) | _ids_of(backend, [*names, "<|im_end|>"]),
            special_tokens=special,
            chat_template=_directory_template(path, config),
        )

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that has a token."""
        return len(self._bytes)

    def encode(self, text: str, *, special: bool = True, affixes: bool = True, most: int | None = None) -> list[int]:
        """Token ids of `text`.

        `special` False treats the text of special tokens as plain characters. `affixes` adds the begin or end token
        where the checkpoint asks for one; pass False for text that a chat template rendered, which has its own.
        Raises UserError for a lone surrogate, which has no UTF-8 form, and RequestError for a text whose beginning has
        more than `most` tokens already, which saves the time and memory that the rest would take.
        """
        if not _is_utf8(text):
            raise UserError("text holds a lone surrogate (half of a UTF-16 pair); send whole characters")
        backend = self._backend if special else self._plain_backend
        size = PROBE * (most or 0)
        while most is not None and size < len(text):
            if len(backend.encode(text[:size], add_special_tokens=False).ids) > most:
                raise RequestError(f"the text has more than {most} tokens", code="context_length_exceeded")
            size *= PROBE
        return backend.encode(text, add_special_tokens=affixes).ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; invalid UTF-8 becomes U+FFFD. Special tokens are left out unless `special`."""
        return b"".join(self.token_bytes(i, special=special) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int, *, special: bool = True) -> bytes:
        """The bytes one id stands for: not always whole UTF-8. Empty for padding rows, and for special tokens unless
        `special`."""
        if not 0 <= token_id < len(self._bytes) or (token_id in self._special_ids and not special):
            return b""
        return self._bytes[token_id]

    def token_id(self, token: str) -> int | None:
        """Id of an exact token such as `<|im_end|>`, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def detokenizer(self) -> "Detokenizer":
        """A fresh incremental decoder for one generation."""
        return Detokenizer(self)

    @cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        # A second instance, because the switch is a property of the backend and would race between threads.
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain


class Detokenizer:
    """Turns ids into text as they arrive, in constant time per id; holds back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        """Text that `ids` complete. All pushes and the flush concatenate to `Tokenizer.decode` of all ids."""
        return self._decoder.decode(b"".join([self._tokenizer.token_bytes(i, special=False) for i in ids]))

    def flush(self) -> str:
        """What an unfinished character at the end stands for (U+FFFD), or nothing. Starts afresh."""
        return self._decoder.decode(b"", True)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _byte_alphabet() -> dict[str, int]:
    """Printable stand-in character -> byte, the table of GPT-2's byte-level BPE (Radford et al. 2019).

    Printable Latin-1 bytes stand for themselves; the others take the code points from 256 upwards, in order.
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in own}
    others = sorted(set(range(256)) - set(own))
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


def _token_bytes(backend: tokenizers.Tokenizer) -> list[bytes]:
    """Bytes per id, `b""` where no token has the id."""
    alphabet = _byte_alphabet()
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (1 + max(vocabulary.values(), default=-1))
    for token, token_id in vocabulary.items():
        if token_id in added or any(character not in alphabet for character in token):
            table[token_id] = token.encode()
        else:
            table[token_id] = bytes(alphabet[character] for character in token)
    return table


def _gguf_backend(metadata: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    tokens = _required(metadata, "tokenizer.ggml.tokens", where)
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"{where}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    # Converters pad the vocabulary up to the embedding's rows with tokens of type UNUSED.
    used = 1 + max((i for i, kind in enumerate(types) if kind != UNUSED), default=-1)
    pre = _required(metadata, "tokenizer.ggml.pre", where)
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise CheckpointError(f"{where}: tokenizer.ggml.pre {pre!r} is unknown; known: {known}")
    split = PRE_TOKENIZERS[pre]
    merges = [_merge_pair(merge) for merge in _required(metadata, "tokenizer.ggml.merges", where)]
    vocabulary = {token: i for i, token in enumerate(tokens[:used])}
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split == "llama3")
    except Exception as error:  # the library raises bare Exception for a merge outside the vocabulary
        raise CheckpointError(f"{where}: tokenizer.ggml.merges do not fit the tokens: {_first_line(error)}") from error
    backend = tokenizers.Tokenizer(model)
    _set_splitting(backend, split)
    _add_tokens(backend, tokens[:used], types)
    _set_affixes(backend, metadata, tokens, split)
    return backend


def _set_splitting(backend: tokenizers.Tokenizer, split: str) -> None:
    if split in SPLITS:
        steps = [
            pre_tokenizers.Split(Regex(SPLITS[split]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if split == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()


def _add_tokens(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    kinds = list(zip(tokens, types, strict=False))
    backend.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in kinds
            if kind in (CONTROL, USER_DEFINED)
        ]
    )


def _set_affixes(backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], split: str) -> None:
    template, special = ["$A"], []
    for role, default in (("bos", split == "llama3"), ("eos", False)):
        token_id = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if token_id is None or not metadata.get(f"tokenizer.ggml.add_{role}_token", default):
            continue
        template.insert(0 if role == "bos" else len(template), tokens[token_id])
        special.append((tokens[token_id], int(token_id)))
    if special:
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)


def _gguf_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()}
    return {role: tokens[i] for role, i in ids.items() if i is not None and 0 <= i < len(tokens)}


def _merge_pair(merge: str) -> tuple[str, str]:
    # A token may itself begin with a space, so the separator is the first space after the first character.
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _config_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    special = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(role)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            special[role] = text
    return special


def _generation_eos(path: Path) -> set[int]:
    value = _read_json(path / "generation_config.json").get("eos_token_id")
    if value is None:
        value = _read_json(path / "config.json").get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return {item for item in values if isinstance(item, int)}


def _directory_template(path: Path, config: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _ids_of(backend: tokenizers.Tokenizer, names: Iterable[str]) -> set[int]:
    added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    return {added[name] for name in names if name in added}


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    return value


def _required(metadata: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in metadata:
        raise CheckpointError(f"{where}: metadata has no {key}; the file needs its tokenizer inside")
    return metadata[key]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
