"""sweq-nano writes the same over every path through the engine, and its levels lose more the fewer bits they have."""

from itertools import pairwise

import pytest
import torch
from nano_paths import complete, load_nano, part, portable_kernels, prompts_of, read_passages

from engine.core.request import Completion
from engine.llm import LLM
from engine.measure.perplexity import score
from nano.data.tokenizer import CALL_START

CONVERSATIONS = 2
NEAR_TIE = 0.05
"""Nats between two tokens that two paths on CPU may take for one another, and between their log-probabilities of one
token. These were seen to differ by 0.0013; the closest choice of a first model in such conversations was 1.6 wide."""
NEAR_TIE_BFLOAT16 = 0.25
"""The same where one path decodes with bfloat16 between matmuls, which was seen to move a log-probability by 0.064."""
LOSSY = ("int8", "fp8", "int4-fp8", "int4", "int3", "int2")
"""Levels from more to fewer bits."""
MOST_PARTED = 0.1
"""Share of the answers that may part at a near-tie: more would be an error and no rounding."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def nano() -> LLM:
    return load_nano()


@pytest.fixture(scope="module")
def prompts(nano: LLM) -> list[list[int]]:
    return [prompt for passage in read_passages(nano, CONVERSATIONS) for prompt in prompts_of(passage)]


@pytest.fixture(scope="module")
def texts(nano: LLM, prompts: list[list[int]]) -> list[Completion]:
    return complete(nano, prompts)


def check(ours: list[Completion], theirs: list[Completion], near_tie: float) -> None:
    """The same greedy texts, with the same log-probabilities, up to near-ties that are rare."""
    partings = [part(*pair) for pair in zip(ours, theirs, strict=True)]
    found = [parting for parting in partings if parting is not None]
    assert all(parting.swapped and max(parting.gaps) < near_tie for parting in found), found
    assert len(found) <= MOST_PARTED * len(ours), found
    for one, other, parting in zip(ours, theirs, partings, strict=True):
        shared = slice(None if parting is None else parting.place)
        pairs = zip((one.logprobs or [])[shared], (other.logprobs or [])[shared], strict=True)
        assert max((abs(a.logprob - b.logprob) for a, b in pairs), default=0) < near_tie


def test_cpu_kernels_write_what_the_portable_ones_do(
    nano: LLM, prompts: list[list[int]], texts: list[Completion]
) -> None:
    call_start = nano.tokenizer.token_id(CALL_START)
    assert len(prompts) >= 4 * CONVERSATIONS
    calls = [completion for completion in texts if call_start in completion.token_ids]
    assert len(calls) > len(texts) / 2
    with portable_kernels() as kernels:
        check(texts, complete(load_nano(), prompts), NEAR_TIE)
    assert kernels.__name__ == "engine.kernels.reference"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_writes_what_the_cpu_does(prompts: list[list[int]], texts: list[Completion]) -> None:
    check(texts, complete(load_nano(device="cuda"), prompts), NEAR_TIE_BFLOAT16)


def test_fewer_bits_diverge_more(nano: LLM) -> None:
    """Against float32 arithmetic over the same weights."""
    passages = read_passages(nano, 2)
    oracle = load_nano("f32")
    figures = [score(nano, passages, oracle)]
    figures += [score(load_nano(level), passages, oracle) for level in LOSSY]
    divergences = [figure["kld_mean"] for figure in figures]
    assert all(later > earlier > 0 for earlier, later in pairwise(divergences))
    # It knows these conversations' answers nearly by heart, down to the levels at which it still works.
    assert all(figure["ppl"] < 1.2 and figure["top1"] > 0.97 for figure in figures[:5])
