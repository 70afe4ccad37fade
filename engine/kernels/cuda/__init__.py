"""The CUDA family in portable torch: whole batches and whole matrices a launch, the reference where that is so already.

Within a decode step nothing here waits for the device. Kernels of our own take these places one by one.
"""

from engine.kernels.cuda.attention import paged_attention, plan_attention
from engine.kernels.cuda.elementwise import delta_net_step, gated_mlp, gated_rms_norm, rms_norm, silu_mul
from engine.kernels.cuda.experts import moe
from engine.kernels.reference import (
    add_rms_norm,
    causal_conv,
    causal_conv_step,
    delta_gates,
    delta_rule_chunked,
    delta_rule_step,
    plan_runs,
    rotate,
    rotate_and_store,
    route,
    store_kv,
)

__all__ = [
    "add_rms_norm",
    "causal_conv",
    "causal_conv_step",
    "delta_gates",
    "delta_net_step",
    "delta_rule_chunked",
    "delta_rule_step",
    "gated_mlp",
    "gated_rms_norm",
    "moe",
    "paged_attention",
    "plan_attention",
    "plan_runs",
    "rms_norm",
    "rotate",
    "rotate_and_store",
    "route",
    "silu_mul",
    "store_kv",
]
