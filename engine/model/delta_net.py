"""The Gated DeltaNet mixer (Yang et al. 2024) as Qwen3-Next wires it: linear attention with a fixed-size state.

q, k, v, z, b, a = projections of x, interleaved per key head
q, k, v = silu(causal convolution of q|k|v);   β = sigmoid(b);   g = −exp(A_log) · softplus(a + dt_bias)
o = gated delta rule of q, k, v under g and β, with a state [K, V] per value head
y = out_proj(norm(o) · silu(z))
"""

from torch import Tensor

from engine.config import ModelConfig
from engine.kernels.ops import Kernels, fused
from engine.kernels.reference_delta import DeltaWeights, split_heads, split_projections
from engine.model.scope import Scope
from engine.model.step import StatePart, Step


class DeltaNet:
    """Extends each sequence's state by its new tokens, single ones step by step and longer runs in chunks."""

    def __init__(self, layer: int, config: ModelConfig, scope: Scope, kernels: Kernels) -> None:
        self.layer, self.kernels, self.fused = layer, kernels, fused(kernels)
        self.in_proj, self.out_proj = scope.joint("in_proj_qkvz", "in_proj_ba"), scope.linear("out_proj")
        self.weights = DeltaWeights(
            conv=scope.tensor("conv1d.weight").flatten(1).float(),
            decay_rate=scope.tensor("A_log").float().exp(),
            dt_bias=scope.tensor("dt_bias").float(),
            norm=scope.tensor("norm.weight").float(),
            eps=config.rms_norm_eps,
            key_heads=config.linear_num_key_heads,
        )

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden] in the dtype of `x`; the states of the step's sequences have moved on."""
        qkvz, ba = self.in_proj(x)
        parts = [self._advance(qkvz[part.rows], ba[part.rows], part, step) for part in step.state_parts]
        gated = parts[0]
        if len(parts) > 1:
            gated = gated.new_empty(x.shape[0], *gated.shape[1:])
            for part, rows in zip(step.state_parts, parts, strict=True):
                gated[part.rows] = rows
        return self.out_proj(gated.flatten(1))

    def _advance(self, qkvz: Tensor, ba: Tensor, part: StatePart, step: Step) -> Tensor:
        """Convolution, delta rule and gated norm for the rows of one part: [T', Hv, V] in the step's dtype."""
        state, weights, kernels = step.cache.delta[self.layer], self.weights, self.kernels
        if part.plan is None:
            tensors = state.window, state.recurrent
            return kernels.delta_net_step(qkvz, ba, weights, *tensors, part.slots, step.dtype)
        if self.fused is not None:
            tensors = state.window, state.recurrent
            return self.fused.delta_net_runs(qkvz, ba, weights, *tensors, part.plan, step.dtype)
        heads, width = state.recurrent.shape[1], state.recurrent.shape[3]
        mixed, z, b, a = split_projections(qkvz, ba, weights, width)
        g, beta = kernels.delta_gates(a, b, weights.decay_rate, weights.dt_bias)
        mixed = kernels.causal_conv(mixed, weights.conv, state.window, part.plan)
        q, k, v = split_heads(mixed, weights.key_heads, heads, width)
        output = kernels.delta_rule_chunked(q, k, v, g, beta, state.recurrent, part.plan)
        return kernels.gated_rms_norm(output, z, weights.norm, weights.eps, step.dtype)
