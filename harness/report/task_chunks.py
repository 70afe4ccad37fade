"""Tasks as the page's viewer reads them: one compressed chunk each, decoded by the browser when it is opened."""

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

from harness.agent.trajectory import Step, Trajectory, read_trajectory
from harness.report.arms import Arm
from harness.run.paths import TaskPaths
from harness.run.store import read_json, read_text

CHUNK_BUDGET = 64_000_000
"""Base64 characters of chunks on one page; tasks beyond it are counted and named, not shown."""

OBSERVATION_LIMIT = 6_000
"""Characters of one message on the page; the middle of a longer one is left out, and the page says so."""

_LOG_LIMIT = 20_000


@dataclass
class Chunks:
    """Chunks in the order they were added; `left_out` counts tasks that no longer fitted."""

    budget: int = CHUNK_BUDGET
    used: int = 0
    left_out: int = 0

    def __post_init__(self) -> None:
        self.texts: list[str] = []

    def add(self, content: dict[str, Any]) -> int:
        """The number of the new chunk, -1 where it does not fit."""
        text = encode(content)
        if self.used + len(text) > self.budget:
            self.left_out += 1
            return -1
        self.used += len(text)
        self.texts.append(text)
        return len(self.texts) - 1


def encode(content: Any) -> str:
    """`content` as JSON, zlib-compressed, in base64: what `DecompressionStream("deflate")` reads."""
    data = json.dumps(content, separators=(",", ":")).encode("ascii")
    return base64.b64encode(zlib.compress(data, 6)).decode()


def describe_task(arm: Arm, instance_id: str, repeat: int) -> dict[str, Any] | None:
    """Steps, patch, test log and failed tests of one task; None where the run directory has nothing of it."""
    paths = arm.run.paths.level(arm.level).task(instance_id, repeat)
    if not paths.trajectory.exists() and not paths.patch.exists():
        return None
    content = _describe_work(read_trajectory(paths.trajectory)) if paths.trajectory.exists() else {}
    failed, passed = _read_tests(paths, instance_id)
    return {
        **content,
        "patch": _shorten(read_text(paths.patch), 4 * _LOG_LIMIT) if paths.patch.exists() else "",
        "log": _shorten(read_text(paths.test_output), _LOG_LIMIT) if paths.test_output.exists() else "",
        "failed": failed,
        "passed": passed,
        "folder": str(paths.root.relative_to(arm.run.paths.root)),
    }


def _describe_work(trajectory: Trajectory) -> dict[str, Any]:
    messages = [_describe_message(message) for message in trajectory.messages]
    first = next((place for place, one in enumerate(messages) if one["role"] == "assistant"), len(messages))
    steps, start = [], first
    for step in trajectory.steps:
        end = max(start, step.messages)
        steps.append(_describe_step(step, messages[start:end]))
        start = end
    ending = trajectory.ending
    return {
        "opening": messages[:first],
        "steps": steps,
        "rest": messages[start:],
        "ending": None
        if ending is None
        else {
            "limit": str(ending.limit),
            "submitted": ending.submitted,
            "notes": list(ending.notes),
            "error": ending.error,
        },
    }


def _describe_step(step: Step, messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "number": step.number,
        "prompt": step.usage.prompt_tokens,
        "cached": step.usage.cached_tokens,
        "completion": step.usage.completion_tokens,
        "model": round(step.seconds_model, 2),
        "tools": round(step.seconds_tools, 2),
        "finish": step.finish_reason,
        "error": step.format_error,
        "exits": [action.exit_code for action in step.actions],
        "messages": messages,
    }


def _describe_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            arguments = str(function.get("arguments", ""))
            calls.append({"name": str(function.get("name", "")), "arguments": _shorten(arguments, OBSERVATION_LIMIT)})
        else:
            calls.append({"name": "?", "arguments": _shorten(json.dumps(call), OBSERVATION_LIMIT)})
    return {"role": str(message.get("role", "")), "text": _shorten(text, OBSERVATION_LIMIT), "calls": calls}


def _read_tests(paths: TaskPaths, instance_id: str) -> tuple[list[str], int]:
    """Names of the failed tests, and how many passed, as the official report has them."""
    if not paths.report.exists():
        return [], 0
    report = read_json(paths.report)
    status = report.get(instance_id, {}).get("tests_status") or {} if isinstance(report, dict) else {}
    parts = [part for part in status.values() if isinstance(part, dict)]
    failed = [str(name) for part in parts for name in part.get("failure", [])]
    return failed, sum(len(part.get("success", [])) for part in parts)


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out of this page ...]\n{text[-half:]}"
