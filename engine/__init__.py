"""A small, readable inference engine for hybrid coding models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.core.request import SamplingParams
    from engine.llm import LLM

__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Import the public names at their first use: `import engine` alone must not load torch."""
    if name == "LLM":
        from engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from engine.core.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
