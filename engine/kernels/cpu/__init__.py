"""The CPU family: torch's fused operators where they beat the plain form, the reference everywhere else."""

from engine.kernels.cpu.attention import paged_attention, plan_attention
from engine.kernels.cpu.elementwise import rms_norm, silu_mul
from engine.kernels.reference import rotate, store_kv

__all__ = ["paged_attention", "plan_attention", "rms_norm", "rotate", "silu_mul", "store_kv"]
