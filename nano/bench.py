"""How fast training runs on this machine, and whether the compiled model computes what the plain one does.

    python -m nano.bench --tokens 131072

Prints JSON lines: agreement, speed and memory, then the table of what takes the time.
"""

import argparse
import json
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from engine.errors import UserError
from nano.check import check_rule, random_batch, try_step
from nano.model import Nano, initialise
from nano.muon import Optimizers, Rates
from nano.shape import NANO

_WIDTHS = (20, 23)  # chunks of a text: about what episodes have


def prepared(device: torch.device, compiled: bool, low: bool, layers: int) -> Nano:
    """A model with random weights in all matrices; `low`: products in bfloat16."""
    values = dict(NANO) | {"num_hidden_layers": layers}
    model = Nano(values, torch.bfloat16 if low else torch.float32, "own", compiled)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return model.to(device)


def agreement(fast: Nano, tokens: int, device: torch.device, layers: int) -> dict[str, float]:
    """Mean losses and the norms of all gradients of both models on the same text, and the cosine of the gradients."""
    plain = prepared(device, False, False, layers)
    batch = random_batch(tokens, 7, device)
    grads: list[torch.Tensor] = []
    result: dict[str, float] = {}
    for name, model in (("plain", plain), ("fast", fast)):
        loss = model(*batch).losses.mean()
        loss.backward()
        found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        grads.append(torch.cat(found))
        result |= {f"{name}_loss": loss.item(), f"{name}_gradient": grads[-1].norm().item()}
        model.zero_grad(set_to_none=True)
    return result | {"cosine": torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0).item()}


def speed(model: Nano, tokens: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Whole training steps, over texts of two lengths in turn."""
    optimizers = Optimizers(model, Rates())
    batches = [random_batch(tokens, chunks, device) for chunks in _WIDTHS]

    def step(number: int) -> int:
        batch = batches[number % len(batches)]
        seen = model(*batch)
        (seen.losses.mean() + 0.01 * seen.routers[0]).backward()
        optimizers.step(0.01)
        return batch[0].numel()

    for number in range(4):
        step(number)
    _wait(device)
    start = time.monotonic()
    done = sum(step(number) for number in range(steps))
    _wait(device)
    each = (time.monotonic() - start) / steps
    result = {"seconds_per_step": each, "tokens_per_second": round(done / steps / each)}
    if device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(result), flush=True)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as trace:
        step(0)
        _wait(device)
    order = f"self_{device.type}_time_total"
    print(trace.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=70))
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m nano.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=131072 if cuda else 4096, help="per step")
    parser.add_argument("--steps", type=int, default=20 if cuda else 2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_float32_matmul_precision("high")
    try:
        check_rule("fla", device)
        print("--delta fla: runs here and agrees with --delta own")
    except UserError as error:
        print(error)
    model = prepared(device, options.compile, cuda, options.layers)
    try_step(model, options.tokens)
    print(json.dumps(agreement(model, min(8192, options.tokens), device, options.layers)), flush=True)
    speed(model, options.tokens, options.steps, device)


if __name__ == "__main__":
    main()
