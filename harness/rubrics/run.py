"""Ask every level for its answers and score them; answers that are stored already are only scored."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from harness.agent.model import ContextExceeded, EndpointModel
from harness.config import LevelConfig, read_api_key
from harness.endpoint import open_endpoint
from harness.errors import UserError
from harness.rubrics.calibration_record import require_calibration
from harness.rubrics.config import JudgeConfig, RubricsConfig
from harness.rubrics.examine import check_sandbox, count_checkers, examine
from harness.rubrics.judge import open_judge
from harness.rubrics.judging import compare_samples, judge_samples
from harness.rubrics.store import Sample, is_scored, sample_paths, save_answer, save_score
from harness.rubrics.task import RubricTask, find_judged, load_tasks
from harness.rubrics.toolchain import Toolchain, find_toolchain
from harness.run.paths import LevelPaths, RunPaths
from harness.run.record import describe_lasting, name_by_content, now
from harness.run.store import find_difference, lock, read_json, write_json
from harness.run.task import derive_seed

ANSWERS_LEVEL = "answers"
"""Name of the level where stored answers name none."""

_OPERATIONAL = ("results", "workers", "checkers", "judge")
"""Keys that move no executable score: free to change later. The judge has an entry of its own in the record."""


@dataclass(frozen=True)
class Finished:
    """A run in `folder`, and how many answers the machine or a judge's server kept from what they should have got."""

    folder: Path
    failed: int


def run_rubrics(config: RubricsConfig, run_id: str | None, echo: Callable[[str], None]) -> Finished:
    """Do what is left of the run. The same configuration continues the same run.

    Raises `UserError`, for a judge whose points may not count before anything is asked, and `EndpointError`; every
    finished answer, score and verdict is on disk by then.
    """
    tasks, tools = load_tasks(config.tasks), find_toolchain()
    licence = require_calibration(config.judge, find_judged(load_tasks())) if config.judge else None
    check_sandbox()
    paths = RunPaths(config.results / (run_id or name_run(config)))
    with lock(paths):
        record = _begin(paths, config, tasks, tools)
        if licence:
            record["judge"] = licence
            write_json(paths.record, record)
        samples = {level.name: list(_plan(level.name, config, tasks, paths)) for level in config.levels}
        for level in config.levels:
            _run_level(level, config, samples[level.name], tools, paths, record, echo)
        failed = _count_spoilt(chain(*samples.values()))
        if config.judge and licence:
            failed += _judge_levels(config, config.judge, samples, licence["protocol_sha256"], echo)
        record["ended"] = now()
        write_json(paths.record, record)
    return Finished(paths.root, failed)


def score_answers(
    folder: Path, output: Path, names: tuple[str, ...], checkers: int | None, echo: Callable[[str], None]
) -> Finished:
    """Score stored answers: `FOLDER/<task>/<sample>.md`, or one such folder per level. No model is asked.

    `output` is laid out as a run. Raises `UserError` where the folder holds no answers.
    """
    tasks = {task.name: task for task in load_tasks(names)}
    found = list(_find_answers(folder, tasks))
    if not found:
        raise UserError(f"{folder}: no answers; expected files {folder}/<task>/<sample>.md, tasks: {', '.join(tasks)}")
    tools = find_toolchain()
    check_sandbox()
    with lock(RunPaths(output)):
        samples = []
        for level, task, path in found:
            paths = sample_paths(output, level, task.name, path.stem)
            text = path.read_text(encoding="utf-8", errors="replace")
            if not paths.answer.exists() or paths.answer.read_text(encoding="utf-8", errors="replace") != text:
                paths.score.unlink(missing_ok=True)
                save_answer(paths, text, 0, "")
            samples.append(Sample(level, task, path.stem, paths))
        _check_all(
            [one for one in samples if not is_scored(one.paths, one.task)], tools, checkers or count_checkers(), echo
        )
    return Finished(output, _count_spoilt(samples))


def name_run(config: RubricsConfig) -> str:
    """`<name>-<hash of the configuration>`: the same configuration continues the same run."""
    return name_by_content(config.name, describe_lasting(config, _OPERATIONAL))


def _plan(level: str, config: RubricsConfig, tasks: Sequence[RubricTask], paths: RunPaths) -> Iterator[Sample]:
    for task in tasks:
        for number in map(str, range(config.samples)):
            yield Sample(level, task, number, sample_paths(paths.root, level, task.name, number))


def _count_spoilt(samples: Iterable[Sample]) -> int:
    return sum(not is_scored(one.paths, one.task) for one in samples)


def _judge_levels(
    config: RubricsConfig,
    settings: JudgeConfig,
    samples: dict[str, list[Sample]],
    protocol: str,
    echo: Callable[[str], None],
) -> int:
    """Verdicts on all levels' answers, then pairs if they are wanted; returns how many the judge's server failed."""
    judge = open_judge(settings)
    failed = judge_samples(list(chain(*samples.values())), judge, protocol, settings.workers, echo)
    if settings.pairs:
        base = samples[config.baseline_name]
        pairs = [
            pair
            for level, own in samples.items()
            if level != config.baseline_name
            for pair in zip(own, base, strict=True)
        ]
        failed += compare_samples(pairs, judge, protocol, settings.workers, echo)
    return failed


def _find_answers(folder: Path, tasks: dict[str, RubricTask]) -> Iterator[tuple[str, RubricTask, Path]]:
    if not folder.is_dir():
        raise UserError(f"--answers {folder}: no such folder; expected <task>/<sample>.md in it")
    levels = [(ANSWERS_LEVEL, folder)] + [(path.name, path) for path in sorted(folder.iterdir()) if path.is_dir()]
    for level, place in levels:
        for name, task in tasks.items():
            for path in sorted((place / name).glob("*.md")):
                yield level, task, path


def _begin(paths: RunPaths, config: RubricsConfig, tasks: Sequence[RubricTask], tools: Toolchain) -> dict[str, Any]:
    wanted = {
        "kind": "rubrics",
        "config": describe_lasting(config, _OPERATIONAL),
        "tasks": {task.name: task.file.version for task in tasks},
        "tools": tools.versions,
    }
    if not paths.record.exists():
        record = {"run_id": paths.root.name, "started": now(), "ended": None, **wanted, "levels": {}}
        write_json(paths.record, record)
        return record
    record = read_json(paths.record)
    for key, value in wanted.items():
        if difference := find_difference(record.get(key), value, key):
            raise UserError(f"{paths.record}: {difference}; choose another --run-id, or undo the change")
    return dict(record)


def _run_level(
    level: LevelConfig,
    config: RubricsConfig,
    samples: Sequence[Sample],
    tools: Toolchain,
    paths: RunPaths,
    record: dict[str, Any],
    echo: Callable[[str], None],
) -> None:
    unanswered = [one for one in samples if not one.paths.answer.exists()]
    with ThreadPoolExecutor(config.checkers or count_checkers(), "check") as checkers:
        checks = [
            checkers.submit(_check, one, tools)
            for one in samples
            if one.paths.answer.exists() and not is_scored(one.paths, one.task)
        ]
        if unanswered:
            echo(f"{level.name}: {len(unanswered)} answers to ask for")
            with _open_model(level, config, paths.level(level.name)) as (model, identity):
                record["levels"][level.name] = identity
                write_json(paths.record, record)
                checks += _ask_all(unanswered, model, config, lambda one: checkers.submit(_check, one, tools))
        _report(checks, len(samples), level.name, echo)


def _ask_all(
    samples: Sequence[Sample],
    model: EndpointModel,
    config: RubricsConfig,
    then: Callable[[Sample], "Future[Sample]"],
) -> list["Future[Sample]"]:
    """Ask for every answer; as soon as one is on disk it is checked."""
    checks: list[Future[Sample]] = []
    guard = threading.Lock()

    def ask(one: Sample) -> None:
        seed = derive_seed(config.sampling.seed, one.task.name, int(one.number))
        try:
            reply = model.complete(
                [{"role": "user", "content": one.task.prompt()}], None, seed=seed, max_tokens=one.task.file.max_tokens
            )
            save_answer(one.paths, reply.text, reply.usage.completion_tokens, reply.finish_reason)
        except ContextExceeded:
            save_answer(one.paths, "", 0, "context")
        with guard:
            checks.append(then(one))

    with ThreadPoolExecutor(config.workers, "ask") as askers:
        asked = [askers.submit(ask, one) for one in samples]
        wait(asked, return_when=FIRST_EXCEPTION)
        for future in asked:
            future.cancel()
    for future in asked:
        if not future.cancelled():
            future.result()
    return checks


@contextlib.contextmanager
def _open_model(
    level: LevelConfig, config: RubricsConfig, paths: LevelPaths
) -> Iterator[tuple[EndpointModel, dict[str, Any]]]:
    endpoint = asyncio.run(open_endpoint(level, config.as_run(), paths.log))
    try:
        yield (
            EndpointModel(
                endpoint.base_url,
                read_api_key(config.endpoint),
                endpoint.model_name,
                config.sampling,
                config.endpoint.request_timeout,
                config.endpoint.max_context,
            ),
            endpoint.identity,
        )
    finally:
        endpoint.close()


def _check(one: Sample, tools: Toolchain) -> Sample:
    answer = one.paths.answer.read_text(encoding="utf-8", errors="replace")
    save_score(one.paths, one.task, examine(one.task, answer, tools))
    return one


def _check_all(samples: Sequence[Sample], tools: Toolchain, checkers: int, echo: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(checkers, "check") as pool:
        _report([pool.submit(_check, one, tools) for one in samples], len(samples), "answers", echo)


def _report(checks: Iterable["Future[Sample]"], total: int, level: str, echo: Callable[[str], None]) -> None:
    for number, future in enumerate(checks, start=1):
        one = future.result()
        document = read_json(one.paths.score)
        said = document["compat"] if document["status"] == "scored" else f"infra: {document['reason'][:120]}"
        echo(f"[{number}/{total}] {level} {one.task.name} #{one.number}: {said}")
