"""The family for NVIDIA GPUs: Triton kernels laid over the portable CUDA family, operation by operation."""

from engine.kernels.cuda import (
    causal_conv_step,
    delta_gates,
    delta_rule_step,
    gated_mlp,
    rotate,
    rotate_and_store,
    silu_mul,
    store_kv,
)
from engine.kernels.triton.attention import (
    gated_attention,
    norm_rotate_and_store,
    paged_attention,
    plan_attention,
    plan_mixed,
    plan_singles,
)
from engine.kernels.triton.delta_runs import delta_net_runs
from engine.kernels.triton.delta_step import delta_net_step
from engine.kernels.triton.norms import add_rms_norm, gated_rms_norm, rms_norm
from engine.kernels.triton.run_plan import plan_runs
from engine.kernels.triton_matrix.mixture import expert_stack, moe, moe_of_stack
from engine.kernels.triton_matrix.routing import route

CAPTURED_TOKENS = 256
"""Most tokens of a decode step that runs without the host waiting for the device, as a CUDA graph must."""

__all__ = [
    "CAPTURED_TOKENS",
    "add_rms_norm",
    "causal_conv_step",
    "delta_gates",
    "delta_net_runs",
    "delta_net_step",
    "delta_rule_step",
    "expert_stack",
    "gated_attention",
    "gated_mlp",
    "gated_rms_norm",
    "moe",
    "moe_of_stack",
    "norm_rotate_and_store",
    "paged_attention",
    "plan_attention",
    "plan_mixed",
    "plan_runs",
    "plan_singles",
    "rms_norm",
    "rotate",
    "rotate_and_store",
    "route",
    "silu_mul",
    "store_kv",
]
