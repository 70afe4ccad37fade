"""What an agent says and sees on one task; and the agent's settings that its words depend on."""

from collections.abc import Mapping
from dataclasses import dataclass

STEP_LIMIT = 12
COMMAND_TIMEOUT = 20.0
"""`agent.step_limit` and `agent.command_timeout` (seconds) of every configuration that runs sweq-nano: the task prompt
names both, and the model has read no others."""

LONGEST_OBSERVATION = 4000
"""Characters. With an `agent.observation_limit` below this, the model would be shown files with a gap, which it has
never read."""

LONGEST_CONTEXT = 4096
"""Tokens that a conversation has room in, the longest of training and a few answers more."""


@dataclass(frozen=True)
class Turn:
    """One answer with its one call, and what the call gave.

    `taught`: the model shall learn to answer so; mistakes are not taught, only what follows them. `mends`: this is the
    edit that repairs the bug.
    """

    text: str
    tool: str
    arguments: Mapping[str, str]
    observation: str
    taught: bool = True
    mends: bool = False


@dataclass(frozen=True)
class Conversation:
    """The whole work on one issue; the last turn submits."""

    issue: str
    turns: tuple[Turn, ...]
