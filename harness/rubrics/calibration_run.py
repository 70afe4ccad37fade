"""Put the labelled set to a judge, and say how far it agrees."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.errors import EndpointError, SandboxError, UserError
from harness.rubrics.agreement import Agreement, measure_agreement
from harness.rubrics.ballot import Page
from harness.rubrics.calibration_record import LEAST_KAPPA, find_protocol, load_record, save_record
from harness.rubrics.config import RubricsConfig
from harness.rubrics.examine import check_sandbox, count_checkers, examine
from harness.rubrics.judge import open_judge
from harness.rubrics.labelled_set import TASK, Labelled, load_labelled
from harness.rubrics.score import JudgedRule
from harness.rubrics.store import PICTURE
from harness.rubrics.task import find_judged, load_tasks
from harness.rubrics.toolchain import find_toolchain
from harness.run.record import now

_FINAL = ("yes", "no", "unscored")


def calibrate(config: RubricsConfig, console: Console) -> Path:
    """Ask the judge of `config` about every answer of the labelled set; print the agreement, keep it, return its file.

    What was answered before is not asked again. Raises `EndpointError` where votes failed: the same command goes on.
    """
    if config.judge is None:
        raise UserError("judge: missing; name one in the configuration, or by --set judge.base_url=... judge.model=...")
    rules, items = find_judged(load_tasks()), load_labelled()
    protocol = find_protocol(config.judge, rules)
    record = load_record(config.judge, protocol) or {
        "judge": config.judge.describe(),
        "protocol_sha256": protocol.protocol_sha256,
        "set_sha256": protocol.set_sha256,
        "answers": {},
    }
    left = [item for item in items if not _is_done(record, item, rules)]
    for number, (item, verdicts) in enumerate(_ask(config, left, rules, console.print), start=1):
        record["answers"][item.id] = verdicts
        save_record(config.judge, protocol, record | {"criteria": None})
        said = ", ".join(f"{name} {verdict['outcome']}" for name, verdict in verdicts.items()) or "not asked"
        console.print(f"[{number}/{len(left)}] {item.id}: {said}", highlight=False, markup=False)
    path = save_record(config.judge, protocol, _conclude(record, items, rules))
    if record["criteria"] is None:
        failed = sum(not _is_done(record, item, rules) for item in items)
        raise EndpointError(f"{failed} answers were not judged, for failures of the server; the same command goes on")
    for rule in rules:
        _print(rule, record["criteria"][rule.id], console)
    return path


def _ask(
    config: RubricsConfig, items: Sequence[Labelled], rules: Sequence[JudgedRule], echo: Callable[[str], None]
) -> Iterator[tuple[Labelled, dict[str, Any]]]:
    """Each answer with its verdicts by criterion; none where the server seemed to be down by then."""
    assert config.judge is not None
    judge, pages = open_judge(config.judge), _show(config, items, echo)

    def decide(item: Labelled) -> dict[str, Any]:
        if judge.failing:
            return {}
        return {rule.id: asdict(judge.decide(pages[item.id], rule, "calibration", item.id)) for rule in rules}

    with ThreadPoolExecutor(config.judge.workers, "judge") as pool:
        yield from zip(items, pool.map(decide, items), strict=True)


def _show(config: RubricsConfig, items: Sequence[Labelled], echo: Callable[[str], None]) -> dict[str, Page]:
    """The pages as a judge sees them: rendered where it takes pictures."""
    assert config.judge is not None
    if not (config.judge.images and items):
        return {item.id: Page(item.source) for item in items}
    tools, task = find_toolchain(), load_tasks((TASK,))[0]
    check_sandbox()
    echo(f"rendering {len(items)} pages")

    def render(item: Labelled) -> Page:
        examined = examine(task, f"```html\n{item.source}\n```", tools)
        if PICTURE not in examined.pictures:
            raise SandboxError(f"{item.id} could not be rendered: {examined.score.reason}")
        return Page(item.source, examined.pictures[PICTURE])

    with ThreadPoolExecutor(config.checkers or count_checkers(), "render") as pool:
        return dict(zip([item.id for item in items], pool.map(render, items), strict=True))


def _is_done(record: dict[str, Any], item: Labelled, rules: Sequence[JudgedRule]) -> bool:
    answered = record["answers"].get(item.id, {})
    return all(answered.get(rule.id, {}).get("outcome") in _FINAL for rule in rules)


def _conclude(record: dict[str, Any], items: Sequence[Labelled], rules: Sequence[JudgedRule]) -> dict[str, Any]:
    """Put the agreement into `record`: None where answers are missing, so that nothing counts on a part of the set."""
    record["calibrated"], record["criteria"] = now(), None
    if all(_is_done(record, item, rules) for item in items):
        record["criteria"] = {rule.id: _describe(_agree(record, items, rule)) for rule in rules}
    return record


def _agree(record: dict[str, Any], items: Sequence[Labelled], rule: JudgedRule) -> Agreement:
    clusters: dict[str, list[tuple[str, str]]] = {}
    for item in items:
        label = "yes" if item.labels[rule.id] else "no"
        clusters.setdefault(item.page, []).append((label, record["answers"][item.id][rule.id]["outcome"]))
    return measure_agreement(clusters)


def _describe(agreement: Agreement) -> dict[str, Any]:
    described = asdict(agreement) | {
        "counts": {f"{label}/{verdict}": count for (label, verdict), count in sorted(agreement.counts.items())}
    }
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in described.items()}


def _print(rule: JudgedRule, found: dict[str, Any], console: Console) -> None:
    table = Table("label", *(f"judge: {verdict}" for verdict in _FINAL), title=f"{rule.id} ({rule.says})")
    for label in ("yes", "no"):
        table.add_row(label, *(str(found["counts"].get(f"{label}/{verdict}", 0)) for verdict in _FINAL))
    console.print(table)
    kappa = math.nan if found["kappa"] is None else found["kappa"]
    bounds = "" if found["low"] is None else f", 95% {found['low']:.2f} to {found['high']:.2f}"
    counts = "its points count" if kappa >= LEAST_KAPPA else f"below {LEAST_KAPPA}: its points do not count"
    console.print(
        f"agreement {100 * found['agreed']:.0f}% of {found['n']}, Cohen's kappa {kappa:.2f}{bounds}: {counts}",
        highlight=False,
        soft_wrap=True,
    )
