"""Captured decode steps against the same steps launched kernel by kernel, and against the portable kernels."""

import pytest
import torch

from engine import LLM, SamplingParams
from engine.kernels import cuda
from engine.model import decoder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [[5, 6, 7] * 30, [9], list(range(100)), [40] * 70, [3] * 33]
LIMITS = {"max_context": 512, "max_running": 5, "max_step_tokens": 96}
SHAPES = ["synthetic:tiny", "synthetic:llama-tiny"]


@pytest.mark.parametrize("shape", SHAPES)
def test_graphs_change_no_token(shape: str) -> None:
    """Answers of unlike lengths, so that batches shrink through several graphs with rows left over."""
    params = [SamplingParams(max_tokens=8 + 9 * i, temperature=0, ignore_eos=True) for i in range(len(PROMPTS))]
    texts = [
        [one.token_ids for one in LLM(shape, "bf16", "cuda", cuda_graphs=graphs, **LIMITS).generate(PROMPTS, params)]
        for graphs in (True, False)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_portable_kernels(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random routers choose other experts for the least difference: the bound is far above rounding."""
    ids = [i * 37 % 263 for i in range(300)]
    got = LLM(shape, "bf16", "cuda", **LIMITS).logits(ids)
    monkeypatch.setattr(decoder, "family", lambda device: cuda)
    want = LLM(shape, "bf16", "cuda", **LIMITS).logits(ids)
    divergence = torch.nn.functional.kl_div(
        got.log_softmax(-1), want.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert divergence < 2e-2


def test_a_request_does_not_depend_on_others() -> None:
    llm = LLM("synthetic:llama-tiny", "bf16", "cuda", **LIMITS)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    together = llm.generate(PROMPTS[:1] * 2, params)
    assert together[0].token_ids == together[1].token_ids
