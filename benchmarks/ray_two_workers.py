"""The same run locally and on a Ray cluster of two workers on this machine: their rows must be equal but for times.

`python benchmarks/ray_two_workers.py` (needs `pip install 'sweq[ray]'`); with `--lose-a-worker` one of the two nodes is
killed while it works. Exit status 1, with the first difference, when the rows differ.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness" / "run")]
os.environ["PYTHONPATH"] = str(ROOT)

import pyarrow.parquet as pq  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from scripted_runs import check_results, finish, start, wait_for_progress, write_config  # noqa: E402

from harness.starter.catalogue import load_rows  # noqa: E402

VARYING = ("run_id", "seconds_agent", "seconds_model", "seconds_tools", "seconds_grading")


def main() -> int:
    """Run both, compare, say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lose-a-worker", action="store_true")
    lose = parser.parse_args().lose_a_worker
    kinds = ("resolved", "unresolved", "empty_patch")
    outcomes = {row["instance_id"]: kinds[number % 3] for number, row in enumerate(load_rows())}
    with tempfile.TemporaryDirectory(prefix="sweq-ray-") as folder:
        config = write_config(Path(folder), outcomes, agent_workers=4, grading_workers=2)
        runs = Path(folder) / "runs"
        seconds = {"local": run_locally(config), "ray": run_on_cluster(config, runs / "ray", lose)}
        for name in seconds:
            check_results(runs / name, outcomes)
        rows = {name: read_rows(runs / name, ("attempts",) if lose else ()) for name in seconds}
    for ours, theirs in zip(rows["local"], rows["ray"], strict=True):
        if ours != theirs:
            print(f"FAILED: rows differ:\n{ours}\n{theirs}")
            return 1
    print(f"{len(rows['ray'])} rows, equal but for {', '.join(VARYING)}{' and attempts' if lose else ''}")
    print(f"local {seconds['local']:.0f} s, ray {seconds['ray']:.0f} s{' with a worker lost' if lose else ''}")
    return 0


def run_locally(config: Path) -> float:
    """Seconds of a local run."""
    begin = time.monotonic()
    status, _, err = finish(start(config, run_id="local"), timeout=600)
    if status:
        sys.exit(f"FAILED: the local run ended with status {status}: {err[-2000:]}")
    return time.monotonic() - begin


def run_on_cluster(config: Path, run: Path, lose: bool) -> float:
    """Seconds of a run on a head without places and two workers with two each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        workers = [cluster.add_node(num_cpus=2) for _ in range(2)]
        begin = time.monotonic()
        process = start(config, "--executor", "ray", run_id="ray", env={"RAY_ADDRESS": cluster.address})
        if lose:
            wait_for_progress(process, run, 3)
            cluster.remove_node(workers[0], allow_graceful=False)
            print("killed one of two workers", flush=True)
        status, _, err = finish(process, timeout=900)
        print(*[line for line in err.splitlines() if "attempt" in line], sep="\n")
        if status:
            sys.exit(f"FAILED: the run on Ray ended with status {status}: {err[-2000:]}")
        return time.monotonic() - begin
    finally:
        cluster.shutdown()


def read_rows(run: Path, also_varying: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a run without what may differ."""
    rows = pq.read_table(run / "results.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key not in (*VARYING, *also_varying)} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
