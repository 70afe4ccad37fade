"""Prove the images built from release archives: gold resolved, a patch that repairs nothing not.

    .venv/bin/python benchmarks/sdist_validation.py --dataset FILE [-i ID ...] [--write docs/sdist_images.md]

Builds what is missing, grades every instance twice with the data set's own eval script and no network, and prints a
line for each. Exit status 1 unless all are proved.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import SandboxError, UserError
from harness.grading.evaluate import evaluate
from harness.instances import Instance, load_instances
from harness.sandbox.docker import DockerFactory, connect
from harness.sandbox.images.releases import Release, load_releases
from harness.sandbox.images.sdist import build, build_environment, find_buildable

_IDLE = "diff --git a/NOTE b/NOTE\nnew file mode 100644\n--- /dev/null\n+++ b/NOTE\n@@ -0,0 +1 @@\n+nothing\n"
PROVED = ("resolved", "unresolved")
"""The verdicts on gold and on the patch that repairs nothing."""
_MARK = "<!-- printed -->\n"
_TITLES = ("instance", "release", "python", "pins", "build s", "MB added", "gold", "no-op", "gold s", "no-op s")


@dataclass(frozen=True)
class Proof:
    """What came of one instance: verdicts, times in seconds, and the MB `added` to its environment."""

    instance_id: str
    release: Release
    build: float
    added: float
    gold: str
    idle: str
    gold_seconds: float
    idle_seconds: float

    @property
    def proved(self) -> bool:
        """Whether the image tells a repair from none."""
        return (self.gold, self.idle) == PROVED

    def row(self) -> tuple[str, ...]:
        """The cells of its line."""
        times = (f"{self.build:.0f}", f"{self.added:.1f}", self.gold, self.idle)
        release = (self.release.sdist, self.release.python, str(len(self.release.pins)))
        return (self.instance_id, *release, *times, f"{self.gold_seconds:.0f}", f"{self.idle_seconds:.0f}")


def prove(row: Instance, release: Release) -> Proof:
    """Build the image of `row` and grade it twice; raises `SandboxError` where it cannot be built."""
    client = connect()
    environment = client.images.get(build_environment(client, release, print))
    started = time.monotonic()
    result = build([row.instance_id], [row], "sdist", print)
    took = time.monotonic() - started
    if result.failures:
        raise SandboxError(result.failures[row.instance_id])
    added = (result.images[0].size_bytes - int(environment.attrs["Size"])) / 1e6
    gold, idle = (evaluate(row, patch, DockerFactory()) for patch in (row.patch, _IDLE))
    verdicts = (gold.verdict.status, idle.verdict.status)
    if verdicts != PROVED:
        for kind, group in (gold.verdict.tests_status or {}).items():
            print(f"{row.instance_id}: gold: {kind} not passed: {group['failure'][:5]}")
    return Proof(row.instance_id, release, took, added, *verdicts, gold.seconds, idle.seconds)


def report(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """How many instances are proved and in which repositories, then a Markdown table of `rows`."""
    rows = list(rows)
    proved = [row[0] for row in rows if row[6:8] == PROVED]
    repos = Counter(name.rpartition("-")[0].replace("__", "/") for name in proved)
    counted = ", ".join(f"{repo} {number}" for repo, number in sorted(repos.items()))
    gold, idle = (sum(int(row[column]) for row in rows) for column in (8, 9))
    return [
        f"{len(proved)} of {len(rows)} instances proved, in {len(repos)} repositories: {counted}.",
        f"One after another, gold took {gold} s and the patch that repairs nothing {idle} s.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (_TITLES, tuple("---" for _ in _TITLES), *rows)),
    ]


def write(page: Path, proofs: Iterable[Proof], names: Iterable[str]) -> None:
    """Put `proofs` into the page's table, whose other rows stay where `names` (the instances there are) has them."""
    head, mark, printed = page.read_text().partition(_MARK)
    if not mark:
        raise UserError(f"{page}: must hold the line {_MARK.strip()}, after which the table goes")
    lines = (line.strip("| ").split(" | ") for line in printed.splitlines() if "__" in line and line.startswith("|"))
    rows = {cells[0]: tuple(cells) for cells in lines} | {proof.instance_id: proof.row() for proof in proofs}
    page.write_text("\n".join([head + mark, *report(rows[name] for name in names if name in rows)]) + "\n")


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--instance", "-i", action="append", default=[])
    parser.add_argument("--write", type=Path, help="the page whose rows are replaced")
    options = parser.parse_args()
    rows = {row.instance_id: row for row in load_instances(options.dataset, options.instance)}
    releases = {name: release for release in load_releases() for name in release.instances}
    proofs: list[Proof] = []
    names = find_buildable(rows.values())
    for name in names:
        try:
            proofs.append(prove(rows[name], releases[name]))
        except SandboxError as error:
            print(f"{name}: {error}", flush=True)
            continue
        print("=", *proofs[-1].row(), flush=True)
        if options.write is not None:
            write(options.write, proofs[-1:], releases)
    print("\n".join(report(proof.row() for proof in proofs)))
    return 0 if len(proofs) == len(names) and all(proof.proved for proof in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
