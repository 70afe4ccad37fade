"""Parsing what a model writes; the chat template that renders calls is the oracle for what they look like."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.errors import UserError
from engine.text.call_parser import CallArguments, CallEnd, CallStart, Event, TextPart
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Tokenizer
from engine.text.tool_calls import ToolCallStream, find_syntax

TEMPLATES = {
    name: (Path(__file__).parents[1] / "templates" / f"{name}.jinja").read_text() for name in ("qwen3_coder", "hermes")
}
PRINTABLE = [chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
MARKERS = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
TOKENS = [*PRINTABLE, *[chr(256 + n) for n in range(256 - len(PRINTABLE))], *MARKERS]
TOKENIZER = Tokenizer.from_gguf(
    {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [*[1] * 256, 3, 3, 4, 4],
        "tokenizer.ggml.merges": [],
    }
)

TYPES = {"text": "string", "count": "integer", "ratio": "number", "flag": "boolean", "items": "array", "map": "object"}
SCHEMA = {"type": "object", "properties": {name: {"type": kind} for name, kind in TYPES.items()}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "bash", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "free"}},
]


def parse(form: str, ids: list[int], cuts: list[int] | None = None) -> list[Event]:
    """Events of an answer given as ids, which arrive in pieces cut at `cuts`."""
    stream = ToolCallStream(find_syntax(TEMPLATES[form], TOKENIZER), TOKENIZER, TOOLS)
    text = TOKENIZER.detokenizer()
    events = []
    bounds = sorted({0, len(ids), *(cut for cut in cuts or [] if cut < len(ids))})
    for start, end in pairwise(bounds):
        events += stream.push(ids[start:end], text.push(ids[start:end]))
    return events + stream.push([], text.flush()) + stream.finish()


def collect(events: list[Event]) -> tuple[str, list[tuple[str, str]]]:
    """Text, and name and arguments of each call, as a client puts fragments together."""
    text, calls, open_call = "", list[tuple[str, str]](), -1
    for event in events:
        match event:
            case TextPart():
                text += event.text
            case CallStart():
                assert (event.index, open_call) == (len(calls), -1)
                calls.append((event.name, ""))
                open_call = event.index
            case CallArguments():
                assert event.index == open_call
                calls[-1] = (calls[-1][0], calls[-1][1] + event.fragment)
            case CallEnd():
                assert event.index == open_call
                open_call = -1
    assert open_call == -1
    return text, calls


def read(form: str, answer: str) -> tuple[str, list[tuple[str, Any]]]:
    """Text and parsed calls of an answer; delimiters in it are tokens."""
    text, calls = collect(parse(form, TOKENIZER.encode(answer)))
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


def render(form: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """An assistant turn as the template writes it, without what surrounds it."""
    turn = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls],
    }
    text = ChatTemplate(TEMPLATES[form], {}).render(
        [{"role": "user", "content": "x"}, turn], add_generation_prompt=False
    )
    return text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")


# fmt: off
LOOK_ALIKES = [
    "\n", " ", "x", "é🙂", "<", ">", "</", "</div>", "<b>", "{", '"', "\\", "\t", "'", "\r\n", "\n\n", "null", "1.0",
    "</param", "<parameter=", "<parameter=unknown>", "\n<parameter=unknown>\n", "</parameter></param",
    "\n</parameter>\n x", "<function=bash>", "\n</function>", "<function=free>\n</function>", "<tool_call",
]
PIECES = [
    "<tool_call>", "</tool_call>", "<function=bash>", "<function=other>\n", "<function=bash", "</function>",
    "<parameter=text>", "<parameter=count>\n", "<parameter=text=y", "</parameter>", "\n", " ", "x", "<", "5", "é",
    '{"name": "bash"', ', "arguments": {', '"a": 1', "}", '"', "\\",
]
# fmt: on
CODE = st.lists(st.sampled_from(LOOK_ALIKES) | st.text(st.characters(codec="utf-8"), max_size=5), max_size=12).map(
    "".join
)


def is_ambiguous(code: str) -> bool:
    """Whether the format itself cannot tell where the value ends: it holds a whole ending, or ends like one begins."""
    squeezed = "".join(code.split()) + "</parameter></function>"
    return squeezed.count("</parameter><parameter=") > 0 or squeezed.count("</parameter></function>") > 1


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": CODE.filter(lambda code: not is_ambiguous(code)),
    "count": st.integers(),
    "ratio": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    "flag": st.booleans(),
    "items": st.lists(st.integers() | st.text(max_size=4) | st.none(), max_size=3),
    "map": st.dictionaries(st.text(max_size=3), st.booleans() | st.text(max_size=4), max_size=3),
}
ARGUMENTS = st.fixed_dictionaries({}, optional=VALUES)
FREE = st.dictionaries(st.sampled_from(["a", "b.c", "naïve"]), VALUES["text"], max_size=2)
CALLS = st.lists(
    st.tuples(st.just("bash"), ARGUMENTS) | st.tuples(st.sampled_from(["free", "undeclared"]), FREE),
    min_size=1,
    max_size=3,
)
CONTENT = st.text(st.sampled_from("ab <>\n/é"), max_size=12).map(str.strip)


@pytest.mark.parametrize("form", ["qwen3_coder", "hermes"])
@given(content=CONTENT, calls=CALLS, cuts=st.lists(st.integers(1, 400), max_size=30))
def test_rendered_calls_come_back_however_they_are_cut(
    form: str, content: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    ids = TOKENIZER.encode(render(form, content, calls))
    whole = collect(parse(form, ids))
    assert whole[0] == content
    assert [(name, json.loads(arguments)) for name, arguments in whole[1]] == calls
    assert collect(parse(form, ids, cuts)) == whole
    assert collect(parse(form, ids, list(range(len(ids))))) == whole


def begun(form: str, answer: str) -> str:
    """The argument `text` as far as it went out for an answer that still grows."""
    stream = ToolCallStream(find_syntax(TEMPLATES[form], TOKENIZER), TOKENIZER, TOOLS)
    events = [event for token in TOKENIZER.encode(answer) for event in stream.push([token], TOKENIZER.decode([token]))]
    sent = "".join(event.fragment for event in events if isinstance(event, CallArguments))
    return text_of(sent + '"}') if sent else ""


def text_of(arguments: str) -> str:
    text = json.loads(arguments)["text"]
    assert isinstance(text, str)
    return text


def common_prefix(texts: list[str]) -> str:
    same = [len(set(letters)) == 1 for letters in zip(*texts, strict=False)]
    return texts[0][: [*same, False].index(False)]


END = "\n</parameter>\n</function>\n</tool_call>"
ANOTHER = f"</parameter>\n<parameter=count>\n1{END}"
QUOTE = '"}}\n</tool_call>'
WAYS_ON = {
    "qwen3_coder": [way[at:] for way in (END, ANOTHER) for at in range(len(way))] + [f"x{END}", f"y{END}"],
    "hermes": [way[at:] + QUOTE for way in ("u0041", "n", "x") for at in range(len(way) + 1)],
}


@pytest.mark.parametrize("form", ["qwen3_coder", "hermes"])
@given(code=VALUES["text"], cut=st.integers(0, 40))
@settings(phases=[Phase.generate])  # shrinking a failure would take minutes
def test_text_goes_out_as_soon_as_it_is_certain(form: str, code: str, cut: int) -> None:
    """What is sent is what all ways have in common in which the answer may go on: no more, and no less."""
    code = code.encode("ascii", "ignore").decode()
    before, _, behind = render(form, "", [("bash", {"text": "|"})]).partition("|")
    value = render(form, "", [("bash", {"text": code})])[len(before) : -len(behind)]
    answer = before + value[:cut]
    possible = [collect(parse(form, TOKENIZER.encode(answer + way)))[1] for way in WAYS_ON[form]]
    assert begun(form, answer) == common_prefix([text_of(calls[0][1]) for calls in possible])


@pytest.mark.parametrize("form", ["qwen3_coder", "hermes"])
def test_long_text_never_lags(form: str) -> None:
    code = "for n in range(9):\n\tprint(n, '<td>')\n" * 20
    before, _, behind = render(form, "", [("bash", {"text": code})]).partition("for")
    whole = "for" + behind
    for end in range(5, 700, 7):
        assert len(whole[:end]) - len(begun(form, before + whole[:end])) < 60


ANYTHING = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@pytest.mark.parametrize("form", ["qwen3_coder", "hermes"])
@given(answer=ANYTHING, cuts=st.lists(st.integers(1, 200), max_size=20))
def test_any_answer_gives_valid_json_and_the_same_however_cut(form: str, answer: str, cuts: list[int]) -> None:
    ids = TOKENIZER.encode(answer)
    whole = collect(parse(form, ids))
    assert collect(parse(form, ids, cuts)) == whole
    assert collect(parse(form, ids, list(range(len(ids))))) == whole
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in whole[1])
    if not whole[1] and form == "hermes":
        assert whole[0] == answer


def call(*lines: str) -> str:
    return "\n".join(["<tool_call>", "<function=bash>", *lines, "</function>", "</tool_call>"])


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        (call("<parameter=text>", "ls", "<parameter=count>", "3", "</parameter>"), {"text": "ls", "count": 3}),
        (call("<parameter=text>", "ls"), {"text": "ls"}),
        (call("<parameter=text=create", "</parameter>"), {"text": "create"}),
        (call("<parameter=text=create>", "</parameter>"), {"text": "create"}),
        (call("<parameter=text", "ls", "</parameter>"), {"text": "ls"}),
        (call("<parameter=text>ls</parameter>"), {"text": "ls"}),
        (call("<parameter=text>", "ls", "</parameter>").removeprefix("<tool_call>\n"), {"text": "ls"}),
        (call("<parameter=text>", "ls", "</parameter>").removesuffix("</tool_call>"), {"text": "ls"}),
        (call("<parameter=text>", "ls", "</parameter>").replace("</function>\n", ""), {"text": "ls"}),
        (
            call("oops", "<parameter=text>", "a", "</parameter>"),
            {"text": "a"},
        ),
        (call("<parameter=text>", "a", "</parameter>", "<parameter=text>", "b", "</parameter>"), {"text": "a"}),
        (
            call("<parameter=text>", "the token </tool_call> ends", "</parameter>"),
            {"text": "the token </tool_call> ends"},
        ),
        (call(), {}),
    ],
)
def test_slips_are_understood(answer: str, arguments: dict[str, Any]) -> None:
    assert read("qwen3_coder", answer) == ("", [("bash", arguments)])
    assert read("qwen3_coder", f"So:\n\n{answer}\n") == ("So:", [("bash", arguments)])


@pytest.mark.parametrize(
    ("end", "arguments"),
    [
        ("<parameter=text>\nls -l", {"text": "ls -l"}),
        ("<parameter=text>\nls\n</param", {"text": "ls"}),
        ("<parameter=text>\n\n", {}),
        ("<parameter=text>\nls\n</parameter>", {"text": "ls"}),
        ("<parameter=text>\nls\n</parameter>\n<parameter=count>\n12", {"text": "ls"}),
        ("<parameter=text>\nls\n</parameter>\n<parameter=cou", {"text": "ls"}),
        ("<parameter=text>\nls\n</parameter>\n</func", {"text": "ls"}),
        ("", {}),
    ],
)
def test_broken_off_call_keeps_what_is_complete(end: str, arguments: dict[str, Any]) -> None:
    answer = f"<tool_call>\n<function=bash>\n{end}"
    events = parse("qwen3_coder", TOKENIZER.encode(answer))
    assert events[-1] == CallEnd(0, complete=False) or end.endswith("</parameter>")
    assert read("qwen3_coder", answer) == ("", [("bash", arguments)])


@pytest.mark.parametrize(
    "answer",
    [
        "no call",
        "<tool_call>",
        "<tool_call>\nnothing",
        "<tool_call>\n<function=ba",
        "I write <function=bash> in a sentence",
        "<function=unknown>\n<parameter=a>\n1\n</parameter>\n</function>",
        " spaces stay \n\n",
    ],
)
def test_what_is_no_call_stays_text(answer: str) -> None:
    assert read("qwen3_coder", answer) == (answer, [])


def test_spelled_delimiters_are_text() -> None:
    answer = "<tool_call>\n<function=bash>\n<parameter=text>\nx\n</parameter>\n</function>\n</tool_call>"
    spelled = [token for character in "<tool_call>" for token in TOKENIZER.encode(character)]
    text, calls = collect(parse("hermes", spelled + TOKENIZER.encode('{"name": "bash", "arguments": {}}')))
    assert (text, calls) == ('<tool_call>{"name": "bash", "arguments": {}}', [])
    code = f"a = '''\n{answer}\n'''"
    inside = [token for character in code for token in TOKENIZER.encode(character)]
    around = [TOKENIZER.encode(part) for part in call("<parameter=text>", "|", "</parameter>").split("|")]
    _, calls = collect(parse("qwen3_coder", around[0] + inside + around[1]))
    assert [json.loads(arguments) for _, arguments in calls] == [{"text": code}]


@pytest.mark.parametrize(
    ("schema", "raw", "value"),
    [
        ({"type": "integer"}, "1.0", 1),
        ({"type": "integer"}, "many", "many"),
        ({"type": "number"}, "-1e400", -1.7976931348623157e308),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "2.50", 2.5),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "object"}, "{'a': None}", {"a": None}),
        ({"type": "array"}, '["a",\n 1]', ["a", 1]),
        ({"type": "array"}, "[" * 5000, "[" * 5000),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "None", None),
        ({"$ref": "#/$defs/limit"}, "7", 7),
        ({"enum": [1, 2]}, "2", 2),
        ({"type": "string"}, '{"a": 1}', '{"a": 1}'),
        ({}, "3", "3"),
        ({"type": "string"}, "\n x \n", "\n x \n"),
    ],
)
def test_values_take_the_declared_type(schema: dict[str, Any], raw: str, value: Any) -> None:
    parameters = {"properties": {"p": schema}, "$defs": {"limit": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    stream = ToolCallStream(find_syntax(TEMPLATES["qwen3_coder"], TOKENIZER), TOKENIZER, tools)
    answer = f"<tool_call>\n<function=f>\n<parameter=p>\n{raw}\n</parameter>\n</function>\n</tool_call>"
    _, calls = collect(stream.push(TOKENIZER.encode(answer), answer) + stream.finish())
    found = json.loads(calls[0][1])["p"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        ('<tool_call>{"name": "bash", "arguments": "{\\"a\\": 1}"}</tool_call>', [("bash", {"a": 1})]),
        ('<tool_call>{"name": "bash"}</tool_call>', [("bash", {})]),
        ('<tool_call>{"name": "bash", "arguments": {"a": "x\ny"}}', [("bash", {"a": "x\ny"})]),
        ('<tool_call>{"name": "bash", "arguments": {"a": [1], "b": 12', [("bash", {"a": [1]})]),
        (
            '<tool_call>{"name": "bash", "arguments": {"a": "</tool_call>"}}</tool_call>',
            [("bash", {"a": "</tool_call>"})],
        ),
        ('<tool_call>{"name": "b', []),
        ("<tool_call>[1]</tool_call>", []),
    ],
)
def test_hermes_slips(answer: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    assert read("hermes", answer) == ("" if calls else answer, calls)


def test_stop_string_inside_a_delimiter_leaves_text() -> None:
    stream = ToolCallStream(find_syntax(TEMPLATES["hermes"], TOKENIZER), TOKENIZER, TOOLS)
    ids = TOKENIZER.encode("ab<tool_call>")
    assert collect(stream.push(ids, "ab<tool") + stream.finish()) == ("ab<tool", [])


def test_syntax_comes_from_the_template_and_needs_its_tokens() -> None:
    assert find_syntax(TEMPLATES["qwen3_coder"], TOKENIZER).format == "qwen3_coder"
    assert find_syntax(TEMPLATES["hermes"], TOKENIZER).format == "hermes"
    with pytest.raises(UserError, match="no tool calls of a known form"):
        find_syntax("{{ tools }}", TOKENIZER)
    plain = {"model": "gpt2", "pre": "gpt-2", "tokens": TOKENS[:256], "merges": []}
    bare = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in plain.items()})
    with pytest.raises(UserError, match="<tool_call>, which is not a token"):
        find_syntax(TEMPLATES["hermes"], bare)
