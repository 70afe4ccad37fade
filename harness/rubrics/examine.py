"""Run a task's checks on one answer, in a sandbox without a network, and return the facts that they report."""

import io
import json
import os
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import SandboxError, UserError
from harness.rubrics.answer import extract
from harness.rubrics.score import Fact, Score, compute_score
from harness.rubrics.task import RubricTask
from harness.rubrics.toolchain import Toolchain
from harness.sandbox.base import ExecResult
from harness.sandbox.limits import Limits
from harness.sandbox.namespace import NamespaceSandbox, probe

_BLOCKS = "blocks.json"
_REPORT = "/testbed/.report.json"
_PICTURES = "/testbed/pictures"
# V8 and WebAssembly reserve far more address space than they use; what they use is bounded by the options below.
_LIMITS = Limits(memory_bytes=1 << 43, disk_bytes=512 << 20, processes=512)
_ENVIRONMENT = {"NODE_OPTIONS": "--max-old-space-size=1024", "NO_COLOR": "1", "CI": "1"}
_PICTURE_LIMIT = 4 << 20
_MEMORY = 1 << 30


@dataclass(frozen=True)
class Examined:
    """The score of an answer, the facts below it, and the pictures that the checks took (PNG, by file name)."""

    score: Score
    facts: dict[str, Fact] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)


def check_sandbox() -> None:
    """Raise `UserError` where namespaces, in which all checks run, cannot be made."""
    if reason := probe():
        raise UserError(
            f"rubric checks run untrusted code in Linux namespaces, and those cannot be made here: {reason}"
        )


def count_checkers() -> int:
    """Answers to check at once on this machine: one for each core, as far as each finds its gibibyte of memory free."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return max(1, min(len(os.sched_getaffinity(0)), available // _MEMORY))


def examine(task: RubricTask, answer: str, tools: Toolchain) -> Examined:
    """Score `answer`. Whatever the answer does is a score; checks that cannot do their work end as `infra`."""
    extracted = extract(answer, task.file.extraction)
    files = task.files() | {
        task.file.extraction.file: extracted.code.encode(),
        _BLOCKS: json.dumps(extracted.blocks).encode(),
    }
    with tempfile.TemporaryDirectory(prefix="sweq-rubric-") as folder:
        try:
            with NamespaceSandbox(Path(folder), _LIMITS, [tools.folder]) as box:
                box.unpack(_pack(files, tools))
                done = box.exec(
                    f"node check.mjs {tools.chromium}",
                    timeout=task.file.timeout,
                    env=_ENVIRONMENT,
                    output_limit=1 << 16,
                )
                reported = _read_report(box, done, task)
                pictures = {name: box.read_file(f"{_PICTURES}/{name}") for name in reported.pictures}
        except SandboxError as error:
            return Examined(Score("infra", None, None, reason=str(error)))
        except _BrokenChecksError as error:
            return Examined(Score("infra", None, None, reason=str(error)))
    facts = reported.facts | extracted.facts
    kept = {name: data for name, data in pictures.items() if len(data) <= _PICTURE_LIMIT}
    return Examined(compute_score(task.file.rubric, facts), facts, kept)


class _BrokenChecksError(Exception):
    """The checks themselves failed: no score."""


@dataclass(frozen=True)
class _Reported:
    facts: dict[str, Fact]
    pictures: tuple[str, ...]


def _pack(files: dict[str, bytes], tools: Toolchain) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"testbed/{name}")
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("testbed/node_modules")
        link.type, link.linkname = tarfile.SYMTYPE, str(tools.folder / "node_modules")
        archive.addfile(link)
    return buffer.getvalue()


def _read_report(box: NamespaceSandbox, done: ExecResult, task: RubricTask) -> _Reported:
    said = " ".join(done.output.split())[-400:]
    if done.timed_out:
        raise _BrokenChecksError(f"{task.name}: the checks took longer than {task.file.timeout:g} s: {said}")
    if done.exit_code != 0:
        raise _BrokenChecksError(f"{task.name}: check.mjs ended with status {done.exit_code}: {said}")
    try:
        report: Any = json.loads(box.read_file(_REPORT))
        facts = {name: Fact(entry["value"], str(entry["evidence"])) for name, entry in report["facts"].items()}
        pictures = tuple(str(name) for name in report["pictures"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _BrokenChecksError(f"{task.name}: check.mjs left no readable report ({error})") from error
    missing = sorted(set(task.file.facts) - facts.keys())
    if missing:
        raise _BrokenChecksError(f"{task.name}: check.mjs did not report {', '.join(missing)}")
    return _Reported(facts, pictures)
