"""The Gated DeltaNet mixer (Yang et al. 2024) as Qwen3-Next wires it: linear attention with a fixed-size state.

q, k, v, z, b, a = projections of x, interleaved per key head
q, k, v = silu(causal convolution of q|k|v);   β = sigmoid(b);   g = −exp(A_log) · softplus(a + dt_bias)
o = gated delta rule of q, k, v under g and β, with a state [K, V] per value head
y = out_proj(norm(o) · silu(z))
"""

import torch
from torch import Tensor

from engine.cache.tensors import LayerState
from engine.config import ModelConfig
from engine.kernels.ops import DeltaWeights, FusedKernels, Kernels, fused
from engine.model.scope import Scope
from engine.model.step import StatePart, Step


class DeltaNet:
    """Extends each sequence's state by its new tokens, single ones step by step and longer runs in chunks."""

    def __init__(self, layer: int, config: ModelConfig, scope: Scope, kernels: Kernels) -> None:
        self.layer, self.kernels, self.eps = layer, kernels, config.rms_norm_eps
        self.key_heads, self.value_heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.in_proj_qkvz, self.in_proj_ba = scope.linear("in_proj_qkvz"), scope.linear("in_proj_ba")
        self.out_proj = scope.linear("out_proj")
        self.conv_weight = scope.tensor("conv1d.weight").flatten(1)
        self.decay_rate, self.dt_bias = scope.tensor("A_log").float().exp(), scope.tensor("dt_bias").float()
        self.norm = scope.tensor("norm.weight")
        self.weights = DeltaWeights(
            self.conv_weight, self.decay_rate, self.dt_bias, self.norm, self.eps, self.key_heads
        )
        self.fused = fused(kernels)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden] in the dtype of `x`; the states of the step's sequences have moved on."""
        if self.fused is not None:
            return self.out_proj(self._fused(self.fused, x, step))
        mixed, z = self._split_qkvz(self.in_proj_qkvz(x))
        b, a = self.in_proj_ba(x).view(x.shape[0], self.key_heads, 2, -1).unbind(2)
        g, beta = self.kernels.delta_gates(a.flatten(1), b.flatten(1), self.decay_rate, self.dt_bias)
        output = torch.empty(z.shape, dtype=torch.float32, device=x.device)
        state = step.cache.delta[self.layer]
        for part in step.state_parts:
            rows = part.rows
            output[rows] = self._advance(mixed[rows], g[rows], beta[rows], state, part)
        gated = self.kernels.gated_rms_norm(output, z, self.norm, self.eps, step.dtype)
        return self.out_proj(gated.flatten(1))

    def _fused(self, kernels: FusedKernels, x: Tensor, step: Step) -> Tensor:
        """The same as far as `out_proj`, by kernels that take the projections as they come."""
        qkvz, ba, state = self.in_proj_qkvz(x), self.in_proj_ba(x), step.cache.delta[self.layer]
        outputs = []
        for part in step.state_parts:
            rows = (qkvz[part.rows], ba[part.rows], self.weights, state.window, state.recurrent)
            if part.plan is None:
                outputs.append(kernels.delta_net_step(*rows, part.slots))
            else:
                outputs.append(kernels.delta_net_runs(*rows, part.plan))
        if len(outputs) == 1:
            return outputs[0]
        output = torch.empty(x.shape[0], self.value_heads * self.value_dim, dtype=x.dtype, device=x.device)
        for part, result in zip(step.state_parts, outputs, strict=True):
            output[part.rows] = result
        return output

    def _split_qkvz(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Un-interleave [T, Hk · (K + K + rV + rV)] into q|k|v [T, channels] and z [T, Hv, V]."""
        grouped_value = self.value_heads // self.key_heads * self.value_dim
        sizes = [self.key_dim, self.key_dim, grouped_value, grouped_value]
        q, k, v, z = torch.split(projected.view(projected.shape[0], self.key_heads, -1), sizes, dim=-1)
        mixed = torch.cat((q.flatten(1), k.flatten(1), v.flatten(1)), dim=-1)
        return mixed, z.reshape(z.shape[0], self.value_heads, self.value_dim)

    def _advance(self, mixed: Tensor, g: Tensor, beta: Tensor, state: LayerState, part: StatePart) -> Tensor:
        """Convolution and delta rule for the rows of one part: float32 [T', Hv, V]."""
        if part.plan is None:
            mixed = self.kernels.causal_conv_step(mixed, self.conv_weight, state.window, part.slots)
            return self.kernels.delta_rule_step(*self._heads(mixed), g, beta, state.recurrent, part.slots)
        mixed = self.kernels.causal_conv(mixed, self.conv_weight, state.window, part.plan)
        return self.kernels.delta_rule_chunked(*self._heads(mixed), g, beta, state.recurrent, part.plan)

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [T', Hk, K] and v [T', Hv, V] as views of q|k|v."""
        keys = self.key_heads * self.key_dim
        q, k, v = mixed[:, :keys], mixed[:, keys : 2 * keys], mixed[:, 2 * keys :]
        by_key = (-1, self.key_heads, self.key_dim)
        return q.view(by_key), k.view(by_key), v.view(-1, self.value_heads, self.value_dim)
