"""Mixture of experts without a loop over them: chosen matrices are dequantized together and multiplied as a batch.

A few tokens take one matrix for each of their choices, which needs nothing of the device but more launches. Beyond
that, tokens are sorted by expert so that each is dequantized once; then the host must know how many tokens the busiest
expert has, and waits for the device once a layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.cuda.elementwise import silu_mul
from engine.kernels.reference_moe import Experts
from engine.kernels.rows import take_rows

DIRECT_TOKENS = 8
"""Tokens up to which each choice has a matrix of its own; with 10 of 512 experts a token, 8% of those are equal."""

STACK_BYTES = 512 << 20
"""Most bytes of one stack of matrices that are dequantized at once."""

EVEN_ROWS = 64
"""Experts of at most so many tokens are padded to the busiest among them; others to less than twice their tokens."""


def moe(x: Tensor, gate_up: Experts, down: Experts, weights: Tensor, experts: Tensor) -> Tensor:
    """See `reference_moe.moe`; a token's terms are added in the order of its choices."""
    tokens, choices = experts.shape
    room = max(1, STACK_BYTES // (gate_up.shape[1] * gate_up.shape[2] * x.itemsize))
    if tokens <= DIRECT_TOKENS and tokens * choices <= room:
        terms = _direct(x, gate_up, down, experts)
    else:
        terms = _grouped(x, gate_up, down, experts, room)
    return (terms.float() * weights.unsqueeze(-1)).sum(1)


def _direct(x: Tensor, gate_up: Experts, down: Experts, experts: Tensor) -> Tensor:
    """Each choice's output [T, k, hidden]."""
    tokens, choices = experts.shape
    inputs = x[:, None].expand(tokens, choices, -1).reshape(tokens * choices, 1, -1)
    return _apply(inputs, gate_up, down, experts.flatten()).view(tokens, choices, -1)


def _apply(inputs: Tensor, gate_up: Experts, down: Experts, ids: Tensor) -> Tensor:
    """Expert `ids[i]` over `inputs[i]`: [n, m, hidden] to the same."""
    gate, up = torch.bmm(inputs, gate_up.gather(ids, inputs.dtype).transpose(1, 2)).chunk(2, dim=-1)
    return torch.bmm(silu_mul(gate, up), down.gather(ids, inputs.dtype).transpose(1, 2))


@dataclass(frozen=True)
class _Sorted:
    """Choices (rows of T·k) by expert, and experts by how many choices they have, busiest first."""

    choices: Tensor  # [T·k] int64
    numbers: Tensor  # [E] int64: experts, busiest first
    sizes: Tensor  # [E] int64: how many choices each of these has
    starts: Tensor  # [E] int64: where they start in `choices`

    @classmethod
    def of(cls, experts: Tensor, count: int) -> "_Sorted":
        chosen, choices = experts.flatten().sort(stable=True)
        edges = torch.searchsorted(chosen, torch.arange(count + 1, device=chosen.device))
        sizes, numbers = edges.diff().sort(descending=True, stable=True)
        return cls(choices, numbers, sizes, edges[numbers])

    def places(self, first: int, last: int, width: int) -> tuple[Tensor, Tensor]:
        """Choices of experts `first` to `last` of the order [n, width], and where there are any."""
        at = torch.arange(width, device=self.choices.device)
        rows = (self.starts[first:last, None] + at).clamp_(max=self.choices.shape[0] - 1)
        return self.choices[rows], at < self.sizes[first:last, None]


def _grouped(x: Tensor, gate_up: Experts, down: Experts, experts: Tensor, room: int) -> Tensor:
    """Each choice's output [T, k, hidden], every expert's matrices dequantized once, `room` at a time."""
    tokens, choices = experts.shape
    order = _Sorted.of(experts, gate_up.shape[0])
    spare = tokens * choices
    terms = x.new_empty(spare + 1, down.shape[1])
    for first, last, width in groups(order.sizes.tolist(), room):
        which, used = order.places(first, last, width)
        inputs = take_rows(x, (which // choices).flatten()).view(last - first, width, -1)
        outputs = _apply(inputs, gate_up, down, order.numbers[first:last])
        terms[torch.where(used, which, spare).flatten()] = outputs.flatten(0, 1)
    return terms[:spare].view(tokens, choices, -1)


def groups(sizes: list[int], room: int) -> list[tuple[int, int, int]]:
    """Ranges `first:last` of experts by falling `sizes`, idle ones left out, and the first's size, to pad others to."""
    found, first = [], 0
    busy = sum(size > 0 for size in sizes)
    for at in range(1, busy + 1):
        wide = at < busy and sizes[first] > EVEN_ROWS and 2 * sizes[at] <= sizes[first]
        if at == busy or at - first == room or wide:
            found.append((first, at, sizes[first]))
            first = at
    return found
