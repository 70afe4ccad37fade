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
_TITLES = ("instance", "release", "python", "pins", "build s", "MB added", "gold", "no-op", "gold s", "no-op s")


@dataclass(frozen=True)
class Proof:
    """What came of one instance: verdicts, times in seconds, and the MB `added` to its environment."""

    instance_id: str
    repo: str
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
        return (self.gold, self.idle) == ("resolved", "unresolved")

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
    if verdicts != ("resolved", "unresolved"):
        for kind, group in gold.verdict.tests_status.items():
            print(f"{row.instance_id}: gold: {kind} not passed: {group['failure'][:5]}")
    return Proof(row.instance_id, row.repo, release, took, added, *verdicts, gold.seconds, idle.seconds)


def table(proofs: Iterable[Proof]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [_TITLES, tuple("---" for _ in _TITLES), *(proof.row() for proof in proofs)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def summary(proofs: list[Proof], seconds: float) -> list[str]:
    """How many are proved, in which repositories, and how long gold took."""
    repos = Counter(proof.repo for proof in proofs if proof.proved)
    counted = ", ".join(f"{repo} {number}" for repo, number in sorted(repos.items()))
    gold = sum(proof.gold_seconds for proof in proofs)
    return [
        f"{sum(repos.values())} of {len(proofs)} instances proved, in {len(repos)} repositories: {counted}.",
        f"Gold took {gold:.0f} s one after another; this whole command, with what it had to build, {seconds:.0f} s.",
    ]


def _write(page: Path, lines: list[str]) -> None:
    head, mark, _ = page.read_text().partition("<!-- printed -->\n")
    if not mark:
        raise UserError(f"{page}: must hold the line <!-- printed -->, after which the table goes")
    page.write_text(head + mark + "\n" + "\n".join(lines) + "\n")


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--instance", "-i", action="append", default=[])
    parser.add_argument("--write", type=Path, help="the page whose table and summary are replaced")
    options = parser.parse_args()
    rows = {row.instance_id: row for row in load_instances(options.dataset, options.instance)}
    releases = {name: release for release in load_releases() for name in release.instances}
    started, proofs, broken = time.monotonic(), [], 0
    for name in find_buildable(rows.values()):
        try:
            proofs.append(prove(rows[name], releases[name]))
            print("=", *proofs[-1].row(), flush=True)
        except SandboxError as error:
            broken += 1
            print("!", name, error, flush=True)
        if options.write is not None and proofs:
            _write(options.write, [*summary(proofs, time.monotonic() - started), "", *table(proofs)])
    print("\n".join([*summary(proofs, time.monotonic() - started), *table(proofs)]))
    return 1 if broken or not all(proof.proved for proof in proofs) else 0


if __name__ == "__main__":
    sys.exit(main())
