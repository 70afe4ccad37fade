"""The offline face of the engine: load a model, generate, read logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.core.opening import load_engine
from engine.core.request import Completion, Request, SamplingParams, StepOutput
from engine.errors import UserError

Prompts = str | Sequence[str] | Sequence[Sequence[int]]


class LLM:
    """A model at a quantization level, ready to generate.

    `model` is a directory, a `.gguf` file, a hub id, `package:<package>/<file>` or `synthetic:<shape>`; `device` None
    takes a GPU when there is one; further keywords are fields of `EngineConfig`, e.g. `tensor_parallel_size=2`, whose
    processes end with this one or at `close`. UserError for what cannot be loaded.
    """

    def __init__(self, model: str, quant: str = "as-stored", device: str | None = None, **limits: Any) -> None:
        device = device or default_device()
        self.engine = load_engine(model, quant, EngineConfig(device=device, **limits))
        self.checkpoint = self.engine.checkpoint
        self.tokenizer = self.checkpoint.tokenizer

    def close(self) -> None:
        """End the processes of a model over several ranks; it cannot be used afterwards."""
        self.engine.close()

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Complete each prompt (text, or token ids), in the order given.

        One SamplingParams serves all prompts, or there is one for each; with `n` above 1 a prompt gives that many
        completions one after the other. UserError when a prompt cannot be served; then nothing is generated.
        """
        listed: Sequence[str | Sequence[int]] = [prompts] if isinstance(prompts, str) else list(prompts)
        wishes = _for_each(params or SamplingParams(), len(listed))
        requests = [
            Request(f"prompt {number}", self._ids(prompt), wish)
            for number, (prompt, wish) in enumerate(zip(listed, wishes, strict=True))
        ]
        completions = {
            (request.request_id, index): _empty(request, index)
            for request in requests
            for index in range(request.params.n)
        }
        self._submit(requests)
        while self.engine.has_work:
            for output in self.engine.step():
                _absorb(completions[output.request_id, output.index], output)
        return list(completions.values())

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits float32 [len(token_ids), vocab_size] on CPU, through the caches and kernels that serving uses."""
        return self.engine.logits(token_ids)

    def _ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    def _submit(self, requests: Sequence[Request]) -> None:
        try:
            for request in requests:
                self.engine.add(request)
        except UserError:
            for request in requests:
                self.engine.abort(request.request_id)
            raise


def default_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _for_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> Sequence[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise UserError(f"{len(params)} SamplingParams for {count} prompts: give one, or one for each prompt")
    return params


def _empty(request: Request, index: int) -> Completion:
    completion = Completion([], "", "error", len(request.prompt_ids), index=index)
    completion.logprobs = None if request.params.logprobs is None else []
    return completion


def _absorb(completion: Completion, output: StepOutput) -> None:
    completion.token_ids += output.token_ids
    completion.text += output.text
    completion.cached_tokens = output.cached_tokens
    if output.prompt_logprobs:
        completion.prompt_logprobs = list(output.prompt_logprobs)
    if completion.logprobs is not None:
        completion.logprobs += output.logprobs
    if output.finish_reason is not None:
        completion.finish_reason, completion.error = output.finish_reason, output.error
