"""Which configurations the step loop can work with."""

import math

from engine.config import EngineConfig
from engine.core.memory import STATE_GRID
from engine.errors import UserError


def check_limits(config: EngineConfig) -> None:
    """UserError for limits that contradict one another or hold nothing."""
    for name, value in (
        ("block_size", config.block_size),
        ("max_running", config.max_running),
        ("max_step_tokens", config.step_tokens),
    ):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if config.step_tokens < config.max_running:
        raise UserError(
            f"max_step_tokens {config.step_tokens} is below max_running {config.max_running}: "
            "a step must hold one token of every running request"
        )
    if config.deterministic:
        _check_tile(config)


def _check_tile(config: EngineConfig) -> None:
    unit = math.lcm(STATE_GRID, config.block_size)
    if config.prefill_tile < 1 or config.prefill_tile % unit:
        raise UserError(f"prefill_tile is {config.prefill_tile}; it must be a multiple of {unit}")
    least = config.max_running + config.prefill_tile
    if config.step_tokens < least:
        raise UserError(
            f"max_step_tokens {config.step_tokens} is below {least}: a deterministic step must hold a prefill tile "
            "beside one token of every running request"
        )
