"""Before a run: does a delta rule compute what ours does on this device, and does compiling work here?"""

import math
import time

import torch
from torch import Tensor

from engine.errors import UserError
from nano.model import DeltaRule, Functions, Nano, Rule
from nano.shape import CHUNK, model_config

_TOLERANCE = 0.05  # of the largest value: bfloat16 inputs to some kernels


def rule_inputs(texts: int, chunks: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, g, β at sweq-nano's shape, random, as `DeltaRule` takes them."""
    config = model_config()
    generator = torch.Generator(device).manual_seed(1)
    lead = (texts, chunks, CHUNK)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, device=device)

    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    q, k = (normal(keys, config.linear_key_head_dim).to(dtype) for _ in range(2))
    v = normal(values, config.linear_value_head_dim).to(dtype)
    g, beta = -0.1 * normal(values).abs(), torch.sigmoid(normal(values))
    return [x.requires_grad_() for x in (q, k, v, g, beta)]


def check_rule(kind: Rule, device: torch.device) -> None:
    """UserError when the rule of `kind` cannot run here or differs from our own, in values or gradients."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = []
    for each in (DeltaRule(kind), DeltaRule("own")):
        inputs = rule_inputs(2, 5, device, dtype)
        try:
            output = each(Functions(), *inputs).float()
            grads = torch.autograd.grad((output * output.detach().cos()).sum(), inputs)
        except Exception as error:  # kernels raise what they like; all mean that this rule is not to be had here
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"--delta {kind}: does not run here ({reason}); use --delta own") from error
        found.append([output, *grads])
    names = ("output", "dq", "dk", "dv", "dg", "dβ")
    for name, mine, own in zip(names, *found, strict=True):
        off = ((mine - own).abs().max() / own.abs().max()).item()
        if not off < _TOLERANCE:
            raise UserError(f"--delta {kind}: {name} is off by {off:.3f} of its largest value here; use --delta own")


def try_step(model: Nano, tokens: int) -> None:
    """One forward and backward pass over random ids, so that what is compiled is compiled before time counts.

    Where compiling fails, one line says so and the model goes on without it, on a GPU computing layers anew in backward
    for want of memory. RuntimeError: the loss is not finite.
    """
    started = time.monotonic()
    model.recompute = not model.functions.compiled and model.lm_head.weight.is_cuda
    try:
        _step(model, tokens)
    except Exception as error:  # the compiler raises what it likes
        if not model.functions.compiled:
            raise
        reason = (str(error).splitlines() or [""])[0]
        print(f"torch.compile fails here ({type(error).__name__}: {reason}): going on without it", flush=True)
        model.functions, model.recompute = Functions(), model.lm_head.weight.is_cuda
        _step(model, tokens)
    print(f"first pass: {time.monotonic() - started:.0f} s", flush=True)


def random_batch(tokens: int, chunks: int, device: torch.device) -> tuple[Tensor, ...]:
    """What `Nano.forward` takes: texts of `chunks` chunks of random ids, every fifth token trained."""
    texts = max(2, tokens // (chunks * CHUNK))
    token_ids = torch.randint(0, model_config().vocab_size, (texts, chunks, CHUNK), device=device)
    places = torch.arange(0, token_ids.numel() - 1, 5, device=device)
    return token_ids, torch.ones(token_ids.shape, device=device), places, token_ids.flatten()[places + 1]


def _step(model: Nano, tokens: int) -> None:
    seen = model(*random_batch(tokens, 9, model.lm_head.weight.device))
    loss = seen.losses.mean() + seen.routers.sum()
    loss.backward()
    if not math.isfinite(loss.item()):
        raise RuntimeError("the loss of random text is not finite")
    model.zero_grad(set_to_none=True)
