"""What a container costs a grading, beside the official runner: seconds, on the same images, in the same process.

    python benchmarks/container_overhead.py --dataset DATASET -i pallets__flask-5014 -i mwaskom__seaborn-3069

`overhead` is create + apply the gold patch + remove, without tests, ours and, by swebench 5.0.2's own functions, theirs
(`create_container`, start, `copy_to_container`, the first of `GIT_APPLY_CMDS`, `cleanup_container`). `stop` is the
official clean-up alone. `grade` is a whole grading of the gold patch: our `evaluate`, their `run_instance`. The
verdicts of both must agree, and are printed. Rounds alternate. Needs Docker, the images and swebench. The official
runner writes its logs below the working directory, which here is a temporary one.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import docker
from swebench.harness.docker_utils import cleanup_container, copy_to_container
from swebench.harness.run_evaluation import GIT_APPLY_CMDS, create_container, run_instance
from swebench.harness.utils import load_swebench_dataset, make_test_spec

from harness.grading.evaluate import evaluate
from harness.grading.patch import apply_patch
from harness.instances import Instance, load_instances
from harness.sandbox.docker import DockerFactory

_LOGGER = logging.getLogger("official")


def time_call(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `action` took, and what it returned."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def open_ours(factory: DockerFactory, instance: Instance) -> None:
    """Create, apply the gold patch, remove."""
    with factory.create(instance) as sandbox:
        if not apply_patch(sandbox, instance.patch).applied:
            raise SystemExit(f"{instance.instance_id}: the gold patch does not apply")


def open_theirs(client: docker.DockerClient, spec: Any, patch: Path) -> float:
    """The same by the official functions; returns the seconds that their clean-up took."""
    container = create_container(spec, client, "overhead", _LOGGER)
    container.start()
    copy_to_container(container, patch, PurePosixPath("/tmp/patch.diff"))
    done = container.exec_run(f"{GIT_APPLY_CMDS[0]} /tmp/patch.diff", workdir="/testbed", user="root")
    if done.exit_code != 0:
        raise SystemExit(f"{spec.instance_id}: the gold patch does not apply")
    return time_call(lambda: cleanup_container(client, container, _LOGGER))[0]


def measure(instance: Instance, row: dict[str, Any], rounds: int, official_rounds: int) -> dict[str, Any]:
    """Medians in seconds, ratios of medians, and both verdicts."""
    factory, client, spec = DockerFactory(), docker.from_env(timeout=600), make_test_spec(row)
    patch = Path("gold.diff")
    patch.write_text(instance.patch)
    open_ours(factory, instance)  # the first container of an image pays for reading it
    ours, theirs, stops = [], [], []
    for number in range(rounds):
        ours.append(time_call(lambda: open_ours(factory, instance))[0])
        if number < official_rounds:
            seconds, stop = time_call(lambda: open_theirs(client, spec, patch))
            theirs.append(seconds)
            stops.append(stop)
    our_grade, evaluation = time_call(lambda: evaluate(instance, instance.patch, factory))
    prediction = {"instance_id": instance.instance_id, "model_name_or_path": "gold", "model_patch": instance.patch}
    their_grade, official = time_call(lambda: run_instance(spec, prediction, client, "overhead", 1_800))
    report = official[1][instance.instance_id]
    overhead, stop = statistics.median(ours), statistics.median(stops)
    return {
        "instance": instance.instance_id,
        "overhead": overhead,
        "overhead_max": max(ours),
        "official_overhead": statistics.median(theirs),
        "official_stop": stop,
        "stop_over_overhead": stop / overhead,
        "grade": our_grade,
        "official_grade": their_grade,
        "resolved": evaluation.verdict.resolved,
        "official_resolved": report["resolved"],
        "equal": evaluation.verdict.report()[instance.instance_id] == report,
    }


def main() -> None:
    """Print one line of JSON for each instance; exit 1 where verdicts differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("-i", "--instance", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--official-rounds", type=int, default=3, help="about 16 s each")
    arguments = parser.parse_args()
    dataset = os.path.abspath(arguments.dataset)
    instances = load_instances(dataset, arguments.instance)
    rows = {row["instance_id"]: row for row in load_swebench_dataset(dataset, "test", arguments.instance)}
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for instance in instances:
            row = rows[instance.instance_id]
            result = measure(instance, row, arguments.rounds, arguments.official_rounds)
            equal &= result["equal"]
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}), flush=True)
        os.chdir("/")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
