"""The CPU family: kernels of our own or torch's fused operators where they beat the plain form, else the reference."""

from engine.kernels.cpu.attention import paged_attention, plan_attention
from engine.kernels.cpu.delta_net import causal_conv, delta_rule_step
from engine.kernels.cpu.delta_step import delta_net_step
from engine.kernels.cpu.elementwise import add_rms_norm, rms_norm, rotate, rotate_and_store, silu_mul
from engine.kernels.cpu.experts import gated_mlp, moe, route
from engine.kernels.reference import (
    causal_conv_step,
    delta_gates,
    delta_rule_chunked,
    gated_rms_norm,
    plan_runs,
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
