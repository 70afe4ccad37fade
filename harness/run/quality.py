"""What is noted of a level beside its tasks: well-formed tool calls, agents' transcripts, and the GPUs' energy."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pynvml

from harness.agent.model import Message
from harness.agent.trajectory import Step, read_trajectory
from harness.run.paths import LevelPaths
from harness.run.store import write_text

TRANSCRIPT_LIMIT = 200_000
"""Characters of agent transcripts that are scored: some 50,000 tokens, which a level reads once."""

_MILLI = 1e-3


def count_calls(steps: Sequence[Step]) -> tuple[int, int]:
    """Calls of these steps, and those of them that parsed and matched their tool's schema.

    An answer that held no call where one was due counts as a call that did not parse.
    """
    made = sum(max(len(step.actions), 1 if step.format_error else 0) for step in steps)
    valid = sum(action.kind != "misuse" for step in steps for action in step.actions)
    return made, valid


def note_calls(entry: dict[str, Any], trajectory: Path) -> None:
    """Add the calls of one finished task to its level's entry of the record."""
    if not trajectory.exists():
        return
    made, valid = count_calls(read_trajectory(trajectory).steps)
    entry["tool_calls"] = entry.get("tool_calls", 0) + made
    entry["tool_calls_valid"] = entry.get("tool_calls_valid", 0) + valid


def read_joules() -> float | None:
    """Energy that all NVIDIA GPUs of this machine have taken since their driver was loaded, None where none tells."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return _MILLI * sum(int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles)
    except pynvml.NVMLError:
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def note_joules(entry: dict[str, Any], before: float | None) -> None:
    """Add what the GPUs took since `read_joules` gave `before`; nothing where it is not known."""
    after = read_joules()
    if before is not None and after is not None:
        entry["joules"] = entry.get("joules", 0.0) + after - before


def write_transcript(paths: LevelPaths, path: Path, tools: Sequence[Message] | None) -> bool:
    """Write the conversations of a level's agents, a JSON object a line, at most `TRANSCRIPT_LIMIT` characters of them.

    Each is cut behind an answer so that tasks share the limit evenly, and no single one fills it; `tools` are those
    that the model was told of. False where no answer fits.
    """
    files = sorted(paths.root.glob("instances/*/0/trajectory.json"))
    share = TRANSCRIPT_LIMIT // max(len(files), 1)
    kept = [_cut(read_trajectory(file).messages, share) for file in files]
    lines = [json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False) for messages in kept if messages]
    if lines:
        write_text(path, "\n".join(lines) + "\n")
    return bool(lines)


def _cut(messages: Sequence[Message], share: int) -> Sequence[Message]:
    """The longest beginning of at most `share` characters that ends with an answer."""
    length, end = 0, 0
    for number, message in enumerate(messages, start=1):
        length += len(json.dumps(message, ensure_ascii=False))
        if length <= share and message["role"] == "assistant":
            end = number
    return messages[:end]
