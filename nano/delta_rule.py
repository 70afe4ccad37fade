"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464) over whole texts, in big batched products.

Texts are cut into chunks of 64 tokens. Within a chunk the rule is a triangular system, and from chunk to chunk the
state S [K, V] moves linearly, so that only one small product per chunk is sequential. With G the running sum of the log
decay g in a chunk and A_ij = β_i (k_i·k_j) e^{G_i−G_j} for j < i:

    (I + A) [U | W] = [β v | β e^G k]
    S' = (e^{G_C} I − K'ᵀ W) S + K'ᵀ U,   K' = e^{G_C−G} k
    O = (e^G q) S + tril(q kᵀ e^{G_i−G_j}) (U − W S)

Only differences G_i − G_j ≤ 0 are exponentiated. Padding at the end of a text needs no care: the rule is causal.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nano.shape import CHUNK


@dataclass(frozen=True)
class Chunks:
    """What the chunks of a batch ask of the two sequential steps; axes [N chunks, B texts, Hk, Hv / Hk] come first."""

    system: Tensor  # [..., C, C]: A, strictly lower triangular
    right: Tensor  # [..., C, V + K]: β v | β e^G k
    scores: Tensor  # [..., C, C]: tril(q kᵀ e^{G_i−G_j})
    queries: Tensor  # [..., C, K]: e^G q
    written: Tensor  # [..., C, K]: e^{G_C−G} k
    decay: Tensor  # [...]: e^{G_C}

    def parts(self) -> tuple[Tensor, ...]:
        return self.system, self.right, self.scores, self.queries, self.written, self.decay


def cut(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    """The parts of `Chunks` from float32 heads.

    `q` and `k` [B, N, C, Hk, K] are of unit length, q scaled; `v` is [B, N, C, Hv, V], `g` ≤ 0 and `beta`
    [B, N, C, Hv], and value head h reads key head h // (Hv / Hk).
    """
    heads = k.shape[3]
    queries, keys = (x.permute(1, 0, 3, 2, 4) for x in (q, k))
    values = torch.unflatten(v, 3, (heads, -1)).permute(1, 0, 3, 4, 2, 5)
    log_decay, strength = (torch.unflatten(x, 3, (heads, -1)).permute(1, 0, 3, 4, 2) for x in (g, beta))
    total = log_decay.cumsum(-1)
    last = total[..., -1:]
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, float("-inf")).exp()
    queries, keys = queries.contiguous(), keys.contiguous()
    alike, scores = (keys @ keys.mT).unsqueeze(3), (queries @ keys.mT).unsqueeze(3)
    system = (alike * between * strength.unsqueeze(-1)).tril(-1)
    queries, keys = queries.unsqueeze(3), keys.unsqueeze(3)
    right = torch.cat((values * strength.unsqueeze(-1), keys * (strength * total.exp()).unsqueeze(-1)), dim=-1)
    written = keys * (last - total).exp().unsqueeze(-1)
    return system, right, scores * between, queries * total.exp().unsqueeze(-1), written, last.squeeze(-1).exp()


def transitions(solved: Tensor, written: Tensor, decay: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """How the state moves over each chunk: S' = M S + F, both [N, B · Hv, K, ·], from [U | W] and V = `width`."""
    joined = written.mT @ solved
    eye = torch.eye(joined.shape[-2], device=joined.device)
    moved = eye * decay[..., None, None] - joined[..., width:]
    return moved.flatten(1, 3), joined[..., :width].contiguous().flatten(1, 3)


def read(chunks: tuple[Tensor, ...], solved: Tensor, states: Tensor) -> Tensor:
    """The rule's output [B, N, C, Hv, V] from the state [N, B, Hk, Hv / Hk, K, V] before each chunk."""
    _, _, scores, queries, _, _ = chunks
    width = states.shape[-1]
    change = solved[..., :width] - solved[..., width:] @ states
    output = queries @ states + scores @ change
    return output.permute(1, 0, 4, 2, 3, 5).flatten(3, 4)


def unit_lower_inverse(system: Tensor) -> Tensor:
    """(I + A)⁻¹ of strictly lower triangular A [..., C, C], C a power of two, by doubling of diagonal blocks:

    the inverse of [[P, 0], [L, Q]] is [[P⁻¹, 0], [−Q⁻¹ L P⁻¹, Q⁻¹]]. Unlike a series in powers of A it stays exact
    when the same key comes again and again, where powers grow like binomials and cancel.
    """
    size = system.shape[-1]
    inverse = system.new_ones(*system.shape[:-2], size, 1, 1)
    width = 1
    while width < size:
        pairs = size // (2 * width)
        blocks = system.view(*system.shape[:-2], pairs, 2 * width, pairs, 2 * width)
        below = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., width:, :width]
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_product(_product(second, below), first)
        upper = torch.cat((first, torch.zeros_like(first)), dim=-1)
        inverse = torch.cat((upper, torch.cat((corner, second), dim=-1)), dim=-2)
        width *= 2
    return inverse.squeeze(-3)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Batched product; of blocks too small for a matrix kernel, in exact float32 sums."""
    if left.shape[-1] < 16:
        return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)
    return left @ right


class Solve(torch.autograd.Function):
    """X of (I + A) X = R, from the inverse too, which backward uses: dR = T'dX, dA = −dR X'."""

    @staticmethod
    def forward(ctx: Any, system: Tensor, right: Tensor, inverse: Tensor) -> Tensor:
        solved = inverse @ right
        ctx.save_for_backward(inverse, solved)
        return solved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        inverse, solved = ctx.saved_tensors
        right = inverse.mT @ grads[0]
        return -(right @ solved.mT).tril(-1), right, None


class Scan(torch.autograd.Function):
    """The state before each chunk, [N, M, K, V], of S' = M S + F from S = 0."""

    @staticmethod
    def forward(ctx: Any, moved: Tensor, fresh: Tensor) -> Tensor:
        states = torch.empty_like(fresh)
        states[0].zero_()
        for chunk in range(fresh.shape[0] - 1):
            torch.baddbmm(fresh[chunk], moved[chunk], states[chunk], out=states[chunk + 1])
        ctx.save_for_backward(moved, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        moved, states = ctx.saved_tensors
        after = torch.empty_like(states)  # the gradient of the state after each chunk
        after[-1].zero_()
        for chunk in range(states.shape[0] - 1, 0, -1):
            torch.baddbmm(grads[0][chunk], moved[chunk].mT, after[chunk], out=after[chunk - 1])
        return after @ states.mT, after


def chunked_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The whole rule, shapes as of `cut`: [B, N, C, Hv, V] float32."""
    chunks = cut(q, k, v, g, beta)
    system, right, _, _, written, decay = chunks
    with torch.no_grad():
        inverse = unit_lower_inverse(system)
    solved: Tensor = Solve.apply(system, right, inverse)  # type: ignore[no-untyped-call]
    states: Tensor = Scan.apply(*transitions(solved, written, decay, v.shape[-1]))  # type: ignore[no-untyped-call]
    return read(chunks, solved, torch.unflatten(states, 1, system.shape[1:4]))
