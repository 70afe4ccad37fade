"""Trajectories, patches and test logs of tasks that nobody worked on: invented, and marked so in every message."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from harness.agent.limit import Limit
from harness.agent.model import Message, Usage
from harness.agent.trajectory import FORMAT, VERSION, ActionRecord, Ending, Step, Trajectory
from harness.run.outcome import Outcome
from harness.run.paths import TaskPaths
from harness.run.rows import TaskRow

MOST_STEPS = 40
"""Steps that a simulated trajectory writes out, however many its row counts: enough for a page, fewer bytes."""

_NAMES = ("lookups", "expressions", "compiler", "fields", "query", "widgets", "validators", "resolvers", "migrations")
_VERBS = ("resolve", "build", "clean", "prepare", "render", "collect", "merge", "split", "normalise", "compare")
_NOUNS = ("value", "column", "node", "token", "choice", "label", "path", "option", "bound", "alias", "index")


def write_work(paths: TaskPaths, row: TaskRow, rng: np.random.Generator) -> None:
    """Write `trajectory.json`, `patch.diff`, `test_output.txt` and `report.json` of one simulated task."""
    paths.root.mkdir(parents=True)
    place = zlib.crc32(row.instance_id.encode()) % len(_NAMES)
    module = f"{row.repo.split('/')[1]}/{_NAMES[place]}.py"
    old, new = _function(rng), _function(rng)
    trajectory = _make_trajectory(row, module, old, new, rng)
    # Not synced, as a run's own files are: thousands of them would take minutes, and they can be drawn again.
    paths.trajectory.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(trajectory)}))
    if row.outcome == Outcome.INFRA_ERROR:
        return
    paths.patch.write_text(_diff(module, old, new) if row.patch_bytes else "")
    paths.test_output.write_text(_log(row, rng))
    paths.report.write_text(json.dumps(_report(row)))


def _make_trajectory(row: TaskRow, module: str, old: str, new: str, rng: np.random.Generator) -> Trajectory:
    info = {"instance_id": row.instance_id, "level": row.level, "simulated": True}
    trajectory = Trajectory(info, _opening(row, module))
    count = min(row.steps, MOST_STEPS)
    used = 2_400
    for number in range(1, count + 1):
        name, arguments, seen = _act(number, count, module, old, new, rng)
        call = {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        said = f"Simulated thought {number}: {_sentence(rng)}"
        trajectory.messages += [
            {"role": "assistant", "content": said, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": seen},
        ]
        answered, seconds = int(rng.integers(60, 700)), float(rng.gamma(4, 1))
        usage = Usage(used, answered, 0 if number == 1 else int(0.97 * used))
        subject = str(arguments.get("command", arguments.get("path", "")))
        action = ActionRecord(name, subject, int(rng.random() < 0.15), False, 0, float(rng.gamma(2, 0.3)))
        trajectory.steps.append(
            Step(number, len(trajectory.messages), number, usage, 4_096, "tool_calls", seconds, action.seconds,
                 (action,), "", usage.prompt_tokens - usage.cached_tokens + answered)
        )  # fmt: skip
        used += answered + len(seen) // 4
    trajectory.ending = Ending(Limit(row.limit), row.submitted, row.patch_bytes)
    return trajectory


def _opening(row: TaskRow, module: str) -> list[Message]:
    return [
        {"role": "system", "content": "SIMULATED: no model wrote any of this. You fix issues in the repository."},
        {
            "role": "user",
            "content": f"SIMULATED issue of {row.repo}: `{module}` gives a wrong result when a label is empty.",
        },
    ]


def _act(
    number: int, count: int, module: str, old: str, new: str, rng: np.random.Generator
) -> tuple[str, dict[str, str], str]:
    """One simulated action: tool, arguments, observation."""
    if number == count:
        return "submit", {}, "Submitted."
    if number == max(2, count // 2):
        return "edit", {"path": module, "old": old, "new": new}, f"Edited {module}."
    command = str(_pick(rng, [f"sed -n 1,80p {module}", f"grep -rn {_pick(rng, _NOUNS)} {module}", "git status"]))
    if number % 7 == 0:
        command = f"python -m pytest -q tests/test_{module.rpartition('/')[2]}"
    lines = [_function(rng) for _ in range(int(rng.integers(1, 8)))]
    return "bash", {"command": command}, "\n".join(lines)


def _function(rng: np.random.Generator) -> str:
    verb, noun, other = _pick(rng, _VERBS), _pick(rng, _NOUNS), _pick(rng, _NOUNS)
    number = int(rng.integers(2, 90))
    return (
        f"def {verb}_{noun}(self, {other}, limit={number}):\n"
        f"    {noun} = self.{other}_map.get({other})\n"
        f"    if {noun} is None or len({noun}) > limit:\n"
        f"        return {other}\n"
        f"    return self.{verb}({noun})\n"
    )


def _diff(module: str, old: str, new: str) -> str:
    """A unified diff that puts `new` in the place of `old`."""
    before, after = old.splitlines(), new.splitlines()
    body = [f"-{line}" for line in before] + [f"+{line}" for line in after]
    head = f"diff --git a/{module} b/{module}\n--- a/{module}\n+++ b/{module}\n"
    return head + f"@@ -10,{len(before)} +10,{len(after)} @@\n" + "\n".join(body) + "\n"


def _log(row: TaskRow, rng: np.random.Generator) -> str:
    tests = [f"tests/test_{_pick(rng, _NAMES)}.py::test_{_pick(rng, _VERBS)}_{index}" for index in range(30)]
    lines = ["SIMULATED test log", *(f"PASSED {name}" for name in tests), "PASSED tests/test_issue.py::test_other"]
    lines.append(f"{'PASSED' if row.resolved else 'FAILED'} tests/test_issue.py::test_empty_label")
    return "\n".join(lines) + "\n"


def _report(row: TaskRow) -> dict[str, object]:
    name = ["tests/test_issue.py::test_empty_label"]
    kept = {"success": ["tests/test_issue.py::test_other"], "failure": []}
    status = {
        "FAIL_TO_PASS": {"success": name if row.resolved else [], "failure": [] if row.resolved else name},
        "PASS_TO_PASS": kept,
    }
    return {row.instance_id: {"resolved": row.resolved, "patch_exists": row.patch_bytes > 0, "tests_status": status}}


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _sentence(rng: np.random.Generator) -> str:
    words = [f"{_pick(rng, _VERBS)} the {_pick(rng, _NOUNS)}" for _ in range(int(rng.integers(2, 6)))]
    return f"the code must {', then '.join(words)}."
