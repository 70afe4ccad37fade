"""Calibration: are a data set's instances sound on this machine?

Gold must resolve and the unpatched tree must not, in every run, and no test may change its outcome between runs.

What is not sound here says nothing about a model here: `sweq compare --quarantine` leaves it out, and says so.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from tqdm import tqdm

from harness.config import ImagesConfig
from harness.errors import UserError
from harness.files import replace_file
from harness.grading.logs import find_parser
from harness.grading.predictions import Prediction
from harness.grading.results import Graded, grade_instance, grade_unpatched, is_finished
from harness.grading.runs import ImageRecord, NoSandbox, claim, describe_dataset
from harness.instances import Instance, dataset_hash, load_instances
from harness.sandbox.base import ImageSupply, SandboxFactory
from harness.sandbox.images.choice import make_supply
from harness.sandbox.select import choose

FILE = "validation.json"
FORMAT = 1
ARMS = ("gold", "unpatched")


@dataclass(frozen=True)
class Stability:
    """One instance over `repeats` runs of each arm; counts are of runs that resolved.

    `flaky` has, for each test whose outcome changed between runs of one arm, `arm: test` -> outcome -> runs.
    `passes_unpatched` are FAIL_TO_PASS tests that pass without the fix in every run. `why` is empty where it is sound.
    """

    instance_id: str
    repeats: int
    gold_resolved: int
    unpatched_resolved: int
    flaky: dict[str, dict[str, int]]
    passes_unpatched: list[str]
    why: str

    @property
    def is_sound(self) -> bool:
        """Whether its verdicts can be trusted here."""
        return not self.why


def validate(
    dataset: str,
    ids: Sequence[str] = (),
    run_id: str | None = None,
    *,
    repeats: int = 2,
    sandbox: Literal["auto", "docker", "namespace"] = "auto",
    workers: int = 2,
    timeout: float = 1_800.0,
    results: Path = Path("results/runs"),
    images: ImagesConfig | None = None,
) -> tuple[Path, list[Stability]]:
    """Run gold and the unpatched tree `repeats` times each, write `validation.json`; returns its path and what it says.

    The identity of each image that was used goes to `images.json`. Finished runs stay on disk: the same command
    continues, and more repeats add to them. Raises `UserError`.
    """
    instances = load_instances(dataset, ids)
    for instance in instances:
        find_parser(instance.log_parser, f"{dataset}: {instance.instance_id}: column log_parser")
    root = results / (run_id or f"validate-{Path(dataset).stem}-{dataset_hash(instances)[:12]}")
    claim(root, "validate.json", describe_dataset(dataset, instances))
    left = [one for one in instances if not _is_done(one, root, repeats)]
    supplied = images is not None and images.source != "local"
    factory: SandboxFactory = choose(sandbox, left, supplied=supplied) if left else NoSandbox()
    supply = make_supply(images or ImagesConfig(), factory, left, tqdm.write, ImageRecord(root / "images.json").note)
    try:
        ordered = supply.order(instances)
        supply.prefetch([one for one in ordered if one in left])
        runs = _run_all(ordered, root, repeats, factory, supply, workers, timeout)
    finally:
        supply.close()
    found = [summarise(instance, repeats, runs) for instance in instances]
    document = describe_dataset(dataset, instances) | {
        "format": FORMAT,
        "repeats": repeats,
        "instances": {one.instance_id: asdict(one) for one in found},
    }
    replace_file(root / FILE, (json.dumps(document, indent=1) + "\n").encode())
    return root / FILE, found


def summarise(instance: Instance, repeats: int, runs: Mapping[tuple[str, str, int], Graded]) -> Stability:
    """What the runs, by (instance id, arm, repeat), say of one instance."""
    name = instance.instance_id
    arms = {arm: [runs[name, arm, number] for number in range(repeats)] for arm in ARMS}
    resolved = {arm: sum(_resolved(one) for one in graded) for arm, graded in arms.items()}
    flaky = {f"{arm}: {test}": counts for arm, graded in arms.items() for test, counts in _find_flaky(graded).items()}
    outcomes = [_outcomes(one) for one in arms["unpatched"]]
    passing = [
        test for test in instance.fail_to_pass if outcomes and all(one.get(test) == "success" for one in outcomes)
    ]
    problems = [one.problem for graded in arms.values() for one in graded if one.problem]
    ungraded = sum(one.verdict is not None and one.verdict.tests_status is None for one in arms["unpatched"])
    why = _explain(repeats, resolved["gold"], resolved["unpatched"], ungraded, len(flaky), problems)
    return Stability(name, repeats, resolved["gold"], resolved["unpatched"], flaky, passing, why)


def make_table(found: Sequence[Stability]) -> Table:
    """One row per instance."""
    table = Table("instance", "gold", "unpatched", "flaky tests", "F2P passing unpatched", "finding")
    for column in table.columns[1:5]:
        column.justify = "right"
    for one in found:
        table.add_row(
            one.instance_id,
            f"{one.gold_resolved}/{one.repeats}",
            f"{one.unpatched_resolved}/{one.repeats}",
            str(len(one.flaky)),
            str(len(one.passes_unpatched)),
            one.why or "sound",
        )
    return table


def read_quarantine(path: Path) -> dict[str, str]:
    """Instances of a `validation.json` that are not sound, each with the reason; raises `UserError` naming the key."""
    try:
        document: Any = json.loads(path.read_text())
        return {name: str(entry["why"]) for name, entry in document["instances"].items() if entry["why"]}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); `sweq validate` writes a {FILE}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: instances: not what `sweq validate` writes ({error!r})") from error


def _run_all(
    instances: Sequence[Instance],
    root: Path,
    repeats: int,
    factory: SandboxFactory,
    supply: ImageSupply,
    workers: int,
    timeout: float,
) -> dict[tuple[str, str, int], Graded]:
    """All runs of one instance follow one another, so that its image is brought once."""
    runs: dict[tuple[str, str, int], Graded] = {}
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(instances) * repeats * 2, desc="validating") as bar:
        jobs = {
            pool.submit(_run_one, arm, one, factory, root / arm / str(number), timeout, supply): key
            for one in instances
            for number in range(repeats)
            for arm in ARMS
            for key in [(one.instance_id, arm, number)]
        }
        try:
            for job in as_completed(jobs):
                runs[jobs[job]] = job.result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return runs


def _is_done(instance: Instance, root: Path, repeats: int) -> bool:
    return all(is_finished(root / arm / str(number), instance) for arm in ARMS for number in range(repeats))


def _run_one(
    arm: str, instance: Instance, factory: SandboxFactory, root: Path, timeout: float, supply: ImageSupply
) -> Graded:
    if arm == "unpatched":
        return grade_unpatched(instance, factory, root, timeout=timeout, supply=supply)
    gold = Prediction(instance.instance_id, "gold", instance.patch)
    return grade_instance(instance, gold, factory, root, timeout=timeout, supply=supply)


def _resolved(graded: Graded) -> bool:
    return graded.verdict is not None and graded.verdict.resolved


def _outcomes(graded: Graded) -> dict[str, str]:
    """`success` or `failure` of each expected test; none where the log cannot be graded."""
    tests = (graded.verdict.tests_status if graded.verdict else None) or {}
    return {name: outcome for lists in tests.values() for outcome, names in lists.items() for name in names}


def _find_flaky(graded: Sequence[Graded]) -> dict[str, dict[str, int]]:
    # A log that cannot be graded tells of the run, not of each of its tests.
    runs = [outcomes for one in graded if (outcomes := _outcomes(one))]
    tests = sorted({test for run in runs for test in run})
    counts = {test: Counter(run.get(test, "missing") for run in runs) for test in tests}
    return {test: dict(count) for test, count in counts.items() if len(count) > 1}


def _explain(repeats: int, gold: int, unpatched: int, ungraded: int, flaky: int, problems: Sequence[str]) -> str:
    said = []
    if problems:
        said.append(f"the sandbox failed: {problems[0][:120]}")
    if gold < repeats:
        said.append(f"gold resolves in {gold} of {repeats} runs")
    if unpatched:
        said.append(f"resolves unpatched in {unpatched} of {repeats} runs")
    if ungraded:
        said.append(f"cannot be graded unpatched in {ungraded} of {repeats} runs")
    if flaky:
        said.append(f"{flaky} flaky {'test' if flaky == 1 else 'tests'}")
    return "; ".join(said)
