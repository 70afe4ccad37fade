"""Episodes as data: what is learnt of them, that a seed decides them, and what it takes to make them."""

import json
import subprocess
import sys
import tracemalloc
from itertools import islice

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from engine.text.chat import ChatTemplate
from engine.text.history import TurnHistory, build_prompt
from engine.text.tool_calls import find_syntax
from harness.agent.schemas import TOOLS
from nano.data.conversation import COMMAND_TIMEOUT, LONGEST_CONTEXT, LONGEST_OBSERVATION, STEP_LIMIT
from nano.data.episodes import episode_stream, make_conversation, make_episode
from nano.data.render import render, to_messages, tokenize
from nano.data.tokenizer import MODEL, VOCABULARY, LineEncoder, load_tokenizer, train_tokenizer

SEEDS = range(200_000, 200_060)
HEAVY = ("torch", "pydantic", "openai", "httpx", "docker", "datasets", "pyarrow", "transformers")
"""What the machine that trains need not have, or what the making of data must not wait for."""


@pytest.fixture(scope="module")
def conversations():
    return [make_conversation(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def episodes(conversations):
    return [tokenize(each) for each in conversations]


def decode(ids):
    return load_tokenizer().decode(ids.tolist(), special=True)


def learnt(episode):
    """The texts of the runs of ids that the mask chooses."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], episode.mask, [False]]).astype(int)))
    return [decode(episode.token_ids[start:end]) for start, end in edges.reshape(-1, 2)]


def test_the_mask_chooses_the_models_own_turns_without_mistakes(conversations, episodes):
    for conversation, episode in zip(conversations, episodes, strict=True):
        taught = [turn for turn in conversation.turns if turn.taught]
        texts = learnt(episode)
        assert len(texts) == len(taught)
        for turn, text in zip(taught, texts, strict=True):
            assert text.startswith(f"{turn.text}\n<tool_call>\n<function={turn.tool}>\n")
            assert text.endswith("</function>\n</tool_call><|im_end|>")
            assert all(f"\n<parameter={key}>\n{value}\n</parameter>\n" in text for key, value in turn.arguments.items())
    assert any(not turn.taught for each in conversations for turn in each.turns)


def test_the_edit_span_is_the_call_that_mends(conversations, episodes):
    for conversation, episode in zip(conversations, episodes, strict=True):
        mends = [turn for turn in conversation.turns if turn.mends]
        assert len(mends) == len(episode.edit_spans) == 1
        start, end = episode.edit_spans[0]
        assert episode.mask[start:end].all()
        text = decode(episode.token_ids[start:end])
        assert text.startswith("<tool_call>\n<function=edit>")
        assert text.endswith("</function>\n</tool_call>")
        assert f"\n{mends[0].arguments['new']}\n</parameter>" in text


def test_the_last_edits_leave_the_file_as_it_should_be():
    from harness.starter.generate import generate

    for seed in SEEDS:
        instance, text = generate(seed, "train"), ""
        for turn in make_conversation(seed).turns:
            if "git checkout" in turn.arguments.get("command", "") or not text:
                text = instance.base[instance.bug_path]
            elif turn.tool == "edit" and turn.observation.startswith("edited"):
                text = text.replace(turn.arguments["old"], turn.arguments["new"])
        assert text == instance.fixed_text


def test_answers_are_few_and_nobody_is_warned_of_the_end(conversations):
    assert max(len(each.turns) for each in conversations) < STEP_LIMIT
    assert all(each.turns[-1].tool == "submit" for each in conversations)


def test_configurations_of_the_model_are_as_it_was_trained(conversations, episodes):
    assert max(len(turn.observation) for each in conversations for turn in each.turns) <= LONGEST_OBSERVATION
    assert max(len(episode.token_ids) for episode in episodes) < 0.75 * LONGEST_CONTEXT
    files = {file.name: yaml.safe_load(file.read_text()) for file in (MODEL.parents[1] / "configs").glob("*.yaml")}
    configs = {name: config for name, config in files.items() if str(config.get("model", "")).endswith("nano/model")}
    if not configs:
        pytest.skip("no configuration runs sweq-nano yet")
    for name, config in configs.items():
        agent = config["agent"]
        given = agent.get("profile", "tools"), agent["step_limit"], agent["command_timeout"]
        assert given == ("tools", STEP_LIMIT, COMMAND_TIMEOUT), name
        assert agent.get("observation_limit", 10_000) >= LONGEST_OBSERVATION, name
        assert config.get("endpoint", {}).get("max_context", LONGEST_CONTEXT) >= LONGEST_CONTEXT, name


def test_ids_are_those_of_the_engine_and_of_transformers(conversations, episodes):
    theirs = AutoTokenizer.from_pretrained(MODEL)
    for conversation, episode in zip(conversations[:12], episodes, strict=False):
        text = render(conversation)
        assert episode.token_ids.tolist() == load_tokenizer().encode(text, affixes=False)
        rendered = theirs.apply_chat_template(to_messages(conversation)[:-1], tools=list(TOOLS), tokenize=False)
        assert rendered == text
        assert theirs.encode(text, add_special_tokens=False) == episode.token_ids.tolist()


def test_prompts_without_replay_have_the_same_ids(conversations, episodes):
    """As after a restart of the server: earlier answers come back as text and calls, and are tokenized anew."""
    template = ChatTemplate((MODEL / "chat_template.jinja").read_text(), load_tokenizer().special_tokens)
    for conversation, episode in zip(conversations[:12], episodes, strict=False):
        messages = [with_json_arguments(message) for message in to_messages(conversation)]
        for at in (at for at, message in enumerate(messages) if message["role"] == "assistant"):
            prompt = build_prompt(template, load_tokenizer(), TurnHistory(), messages[:at], list(TOOLS))
            assert prompt.replayed_turns == 0
            assert prompt.ids == episode.token_ids[: len(prompt.ids)].tolist()


def with_json_arguments(message):
    """The message with its calls' arguments as the text that stands on the wire."""
    functions = [call["function"] for call in message.get("tool_calls", [])]
    calls = [
        {"type": "function", "function": {**function, "arguments": json.dumps(function["arguments"])}}
        for function in functions
    ]
    return {**message, "tool_calls": calls} if calls else message


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "a\n\n    b\n", "  \n\t x  \n", "<|im_start|>user\n\n<tool_call>\n", "é_π\r\n\n🙂 12__x", " \n \n"],
)
def test_lines_encode_as_the_whole_text(text):
    ids = LineEncoder(load_tokenizer()).encode(text)
    assert ids == load_tokenizer().encode(text, affixes=False)
    assert load_tokenizer().decode(ids, special=True) == text


def test_the_tokenizer_ends_turns_and_reads_calls():
    tokenizer = load_tokenizer()
    assert tokenizer.vocab_size <= VOCABULARY
    assert tokenizer.stop_ids == {tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")}
    assert find_syntax((MODEL / "chat_template.jinja").read_text(), tokenizer).format == "qwen3_coder"
    assert len(tokenizer.encode("2026")) == 4


def test_training_a_tokenizer_gives_the_same_one_again(conversations):
    first, second = (train_tokenizer(map(render, conversations)) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert first.get_vocab_size() <= VOCABULARY


def test_a_stream_is_the_episodes_of_its_seeds_in_order():
    streams = [episode_stream(SEEDS[0], workers) for workers in (1, 2)]
    for seed, *streamed in zip(SEEDS, *(islice(stream, 40) for stream in streams), strict=False):
        expected = make_episode(seed)
        for episode in streamed:
            assert np.array_equal(episode.token_ids, expected.token_ids)
            assert np.array_equal(episode.mask, expected.mask)
            assert episode.edit_spans == expected.edit_spans
    for stream in streams:
        stream.close()


def test_the_seed_that_took_all_memory_gives_an_episode_in_little():
    tracemalloc.start()
    try:
        assert make_episode(72_719).edit_spans
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_an_edit_without_a_word_cannot_be_misread():
    """Seeds whose edit begins with `]` or the like, and whose expert meant to copy it wrongly."""
    for seed in (73_723, 74_944):
        assert make_episode(seed).edit_spans


def test_making_episodes_takes_few_packages():
    script = f"import sys, nano.data.episodes; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
