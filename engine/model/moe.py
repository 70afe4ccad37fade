"""Mixture of experts with a shared expert: `Σ p_e · expert_e(x) + sigmoid(shared_gate(x)) · shared(x)`."""

import sys

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.kernels.cuda.experts import DIRECT_TOKENS
from engine.kernels.ops import Kernels, shared_moe
from engine.model.mlp import DenseMLP
from engine.model.scope import Scope


class SparseMoE:
    """Every token goes through its `num_experts_per_token` likeliest experts and the shared one.

    Of several ranks each has all experts' share of their width, or as many whole experts as the others; a shared
    expert that could not be divided is rank 0's alone.
    """

    def __init__(self, config: ModelConfig, scope: Scope, kernels: Kernels, rank: int = 0) -> None:
        self.kernels = kernels
        self.top_k, self.renormalise = config.num_experts_per_token, config.norm_topk_prob
        self.gates = scope.joint("gate", "shared_expert_gate")
        self.gate_up, self.down = scope.experts("experts.gate_up_proj"), scope.experts("experts.down_proj")
        self.held = self.gate_up.shape[0]
        self.first = rank * self.held if self.held < config.num_experts else 0
        self.partial = self.held < config.num_experts
        shared = scope.below("shared_expert")
        self.shared = DenseMLP(shared, kernels) if rank == 0 or shared.has("down_proj.weight") else None
        self.fused = shared_moe(kernels)
        self.stack = None
        if self.fused is not None and self.shared is not None and self.shared.gate_up.joined is not None:
            matrices = self.shared.gate_up.joined.packed, self.shared.down.packed
            self.stack = self.fused.expert_stack(self.gate_up, self.down, *matrices)
        self.known = self.fused is not None and self.fused.expert_stack(self.gate_up, self.down) is not None

    def captured_tokens(self, dtype: torch.dtype) -> int:
        """Tokens up to which the host does not wait for the device at activations of `dtype`, as graphs need it.

        Beyond what kernels of our own know, the portable path sorts tokens by expert on the host's count of them.
        """
        return sys.maxsize if self.known and dtype == torch.bfloat16 else DIRECT_TOKENS

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> float32 [T, hidden]."""
        logits, shared_logit = self.gates(x)
        weights, experts = self._own(*self.kernels.route(logits, self.top_k, self.renormalise))
        if self.fused is not None and self.stack is not None and x.dtype == torch.bfloat16:
            return self.fused.moe_of_stack(x, self.stack, weights, experts, shared_logit)
        routed = self.kernels.moe(x, self.gate_up, self.down, weights, experts)
        if self.shared is None:
            return routed
        return routed.add_(torch.sigmoid(shared_logit.float()) * self.shared(x))

    def _own(self, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Choices as numbers of this rank's experts; those of other ranks weigh nothing and all fall to one expert."""
        if not self.partial:
            return weights, experts
        own = (experts >= self.first) & (experts < self.first + self.held)
        return weights * own, (experts - self.first) * own
