"""Generated repair tasks: unlimited small packages with one bug each, every one proved by execution.

Training draws from part `train`. The three parts of `starter-500` are what training never sees: `near` has known
families and known pairs of family and kind of bug under held-out names; `mixed` has known families with a kind of bug
that they never have in training; `far` has families of its own.
"""

from typing import Any

from harness.starter.archive import load_archive
from harness.starter.generate.assembly import assemble
from harness.starter.generate.instance import Check, GeneratedInstance
from harness.starter.generate.parts import PARTS
from harness.starter.generate.rows import to_row

__all__ = ["PARTS", "Check", "GeneratedInstance", "generate", "starter_500", "to_row"]


def generate(seed: int, part: str) -> GeneratedInstance:
    """The instance of this seed and part, the same in every process; `part` is one of `PARTS`.

    Only the wording of Python's own errors, which issues quote, depends on the version of Python.

    All of its tests pass with the gold patch; exactly those of `fail_to_pass` fail without it.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r}; one of {', '.join(PARTS)} would be right")
    return assemble(seed, part)


def starter_500() -> list[dict[str, Any]]:
    """The rows of the committed set, as `load_instances("starter-500")` reads them."""
    return load_archive()
