"""The whole engine over the CUDA family, run on CPU tensors, against the same engine over the CPU family."""

import pytest
import torch

from engine import LLM, SamplingParams
from engine.core.request import Completion
from engine.kernels import cuda
from engine.model import decoder

PROMPTS = [[5, 6, 7] * 30, [9], list(range(100)), [40] * 70]


@pytest.fixture(scope="module", params=["synthetic:tiny", "synthetic:llama-tiny"])
def pair(request: pytest.FixtureRequest) -> tuple[LLM, LLM]:
    torch.set_num_threads(1)
    limits = {"max_context": 512, "max_running": 4, "max_step_tokens": 96}
    ours = LLM(request.param, "f32", "cpu", **limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "family", lambda device: cuda)
        return ours, LLM(request.param, "f32", "cpu", **limits)


def test_logits_are_equal(pair: tuple[LLM, LLM]) -> None:
    want, got = (llm.logits(list(range(150))) for llm in pair)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def test_texts_of_a_mixed_batch_are_equal(pair: tuple[LLM, LLM]) -> None:
    """Prompts longer than a step, so that single tokens, runs and runs onto a context share batches."""

    def texts(llm: LLM) -> list[Completion]:
        return llm.generate(PROMPTS, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))

    assert [one.token_ids for one in texts(pair[0])] == [one.token_ids for one in texts(pair[1])]
